"""Cost of the gateway compared with its peers, in front of the same mock engines.

benchmark: the command line and the order of the run
load_cases, request_bodies: what is sent
targets, peer_installation, target_process: what is measured
mock_engine, native_programs, build_cache: the C programs in ``native``
measurement, process_usage: one run, and the processor time of a process tree
routing_decision, tail_latency: the routing decision without HTTP
result_rows, report, plot: what is written
"""
