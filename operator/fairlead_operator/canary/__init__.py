"""The canary of a rollout: a new revision on instances of its own, judged against the running one.

- `judge`: from what both revisions did to a verdict. Pure.
- `progress`: from a verdict to the next step. Pure.
- `measurement`: what both revisions did, from the counters of all gateways.
- `observer`: reads the gateways and judges each canary, until it is cancelled.
"""
