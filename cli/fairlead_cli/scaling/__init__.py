"""Recorded autoscaler decisions: ``explain scaling`` (`explain_command`, `decision_text`) and
``replay-scaling`` (`replay_command`).

`autoscaler_client` queries the autoscaler, `decision_inputs` labels its numbers, `time_argument`
parses times.
"""
