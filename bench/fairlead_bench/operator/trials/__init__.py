"""Faults of the API server and of operators: seconds in tests, minutes in the soak.

cluster_setup: what every trial needs
api_outage: the API server is unreachable or silent
crash_points: the operator is killed around each write
leader_handover: two operators
recorder: changes and states of objects
"""
