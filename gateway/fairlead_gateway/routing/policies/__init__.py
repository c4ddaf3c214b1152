"""The routing policies, one file per preset: pure functions from endpoints to a decision.

In reading order: `dual_hash` (the default), `policy_input` and `score_explanation` (input and
result of the published policies), `dualmap`, `preble`, `baselines`, `registry` (presets by name) and
`assigned_queue` (requests that wait for their instance).
"""
