"""The exchange with other gateways, in the supervisor.

- `peer_sync`: the whole exchange.
- `peer_exchange`: dispatches and loads, over one stream per model.
"""
