"""The exchange with other gateways over Redis, so that all gateways route as one.

In reading order: `peer_sync` (the whole exchange), `peer_exchange` (dispatches and loads over one
stream per model), `peer_outbox`, `peer_state`, `peer_messages`. Then `hot_prefix_lease` (the shared
table of hot prefixes).
"""
