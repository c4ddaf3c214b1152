"""KV transfer between prefill and decode engines, with the failures of real connectors.

- ``settings``: the connector's settings and command line
- ``block_leases``: the blocks that a prefill engine keeps for others
- ``connector``: both sides of NIXL, Mooncake, SGLang and peer-to-peer transfers
- ``peer_client``: queries to other engines; ``api.kv_peer`` answers them
"""
