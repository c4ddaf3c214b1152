"""Instruction counts of the compiled gateway.

benchmark: requests of all kinds, and routing decisions
tenant_requests: plain requests by their caller
stream_continuation: chunks of streams that the gateway can continue, and of others
instruction_table: what the three share: the command line, the order of the run, and the result
counted_gateway: a compiled state of the sources, and its gateway, whose worker runs under callgrind
scenarios: what is counted, as scripts that move both ends of a request step by step
routing_program: the routing decision without HTTP
"""
