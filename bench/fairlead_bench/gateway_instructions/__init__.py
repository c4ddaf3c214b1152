"""Instruction counts of the compiled gateway.

benchmark: the command line, the order of the run, and counts as rows with goals
tenant_requests: plain requests by their caller
stream_continuation: chunks of streams that the gateway can continue, and of others
counted_gateway: a compiled state of the sources, and its gateway, whose worker runs under callgrind
scenarios: what is counted, as scripts that move both ends of a request step by step
routing_program: the routing decision without HTTP
"""
