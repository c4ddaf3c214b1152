"""Recorded autoscaler decisions: ``explain scaling`` (`explain_command`) and ``replay-scaling``
(`replay_command`).

`autoscaler_client` queries the autoscaler.
"""
