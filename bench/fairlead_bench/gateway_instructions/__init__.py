"""Instruction counts of the compiled gateway.

benchmark: the command line and the order of the run
source_tree: a state of the sources, exported and compiled
callgrind: a program under valgrind, and counts of what it does between two moments
cost_parts: events by metric, and instructions by part of the request path, from a dump
gateway_process: a gateway whose worker runs under callgrind
counted_gateway: the cost of each unit, window by window
scripted_engine, client: both ends of a request, moved step by step
scenarios: what is counted, as scripts
routing_program: the routing decision without HTTP
result_rows: counts as rows with goals
"""
