"""The canary of a rollout: a new revision on instances of its own, judged against the running one.

- `instances`: the pools of a canary, with the new revision. Pure.
- `judge`: from the measurements of both revisions to a verdict. Pure.
- `progress`: from a verdict to the next step. Pure.
- `observer`: measures both revisions by the counters of all gateways, until a canary is cancelled.
"""
