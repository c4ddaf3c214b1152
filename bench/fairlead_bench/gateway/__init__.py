"""Cost of the gateway compared with its peers, in front of the same mock engines.

benchmark: the command line and the order of the run
load_cases: what is sent
targets, target_process: what is measured
native_programs: the C programs in ``native``, among them the mock engine
measurement: one run
routing_decision, tail_latency: the routing decision without HTTP
result_rows: what is written
"""
