"""The operator before an API server, compared with kopf's own handlers.

benchmark: the phases of a run, the measured process, goals
kopf_baseline: the baseline
fault_trials: API outages, hand-overs and crashes, for the tests of the operator
self_kill: an operator that kills itself around a write
"""
