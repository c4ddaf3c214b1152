"""KV transfer between prefill and decode engines, with the failures of real connectors.

- ``connector``: both sides of NIXL, Mooncake, SGLang and peer-to-peer transfers, their settings,
  and the blocks that a prefill engine keeps for others
"""
