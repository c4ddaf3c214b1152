"""The exchange with other gateways over Redis, so that all gateways route as one.

In reading order: `peer_sync` (the whole exchange), `peer_exchange` (dispatches and loads over one
stream per model), `peer_outbox`, `peer_state`, `load_decay`, `dispatch_budget`, `peer_messages`,
`stream_rotation`. Then `hot_prefix_lease` and `hot_prefix_counter` (the shared table of hot
prefixes), `peer_load_row` and `replication_hints`.
"""
