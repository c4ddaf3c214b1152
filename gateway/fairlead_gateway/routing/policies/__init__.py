"""The routing policies: pure functions from endpoints to a decision.

- `dual_hash`: the default.
- `policy_input`: input and result of the published policies.
- `published_dualmap`, `preble`, `baselines`: the published policies.
- `registry`: presets by name.
- `assigned_queue`: requests that wait for their instance.
"""
