"""The KV-cache index of a gateway: which instance has which prefixes cached, as KV events say.

Its core is pure: no clock and no I/O. The simulator uses it, too. It leads from the bytes that
gateways route by to the token blocks that engines report. In reading order:

- `translator`: engine reports in terms of byte prefixes.
- `links`: links from byte blocks to token blocks, and those of a prompt as bytes.
- `cache_correction`: a change of what an instance caches.
- `messages`: between supervisor and workers; `worker`: applies corrections to routers.
- `supervisor`: reads events and prompts.
"""
