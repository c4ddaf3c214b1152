"""The operator before an API server.

benchmark: the phases of a run, the measured process, goals
fault_trials: API outages, hand-overs and crashes, for the tests of the operator
self_kill: an operator that kills itself around a write
"""
