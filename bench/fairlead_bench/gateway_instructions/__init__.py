"""Instruction counts of the compiled gateway.

benchmark: the command line, the order of the run, and counts as rows with goals
tenant_requests: plain requests by their caller
source_tree: a state of the sources, exported and compiled
instruction_counts: a program under valgrind, and what its dumps count by part of the request path
counted_gateway: a gateway whose worker runs under callgrind, and the cost of each unit
scenarios: what is counted, as scripts that move both ends of a request step by step
routing_program: the routing decision without HTTP
"""
