"""The operator before an API server, compared with kopf's own handlers.

benchmark: the command line and the order of the run
measurement, subject_process: phases of a run, and the measured process
kopf_baseline: the baseline
result_rows: goals and comparisons
soak, self_kill: the long run, and an operator that kills itself around a write
trials: faults that soak and tests share
"""
