"""The KV-cache index of a gateway: which instance has which prefixes cached, as KV events say.

Its modules are pure: no clock and no I/O. The simulator uses them, too. They lead from the bytes
that gateways route by to the token blocks that engines report. In reading order:

- `translator`: engine reports in terms of byte prefixes.
- `links`: links from byte blocks to token blocks, and those of a prompt as bytes.
- `cache_correction`: a change of what an instance caches.
- `supervisor`: reads events and prompts; `tokenizer`: a process that tokenizes prompts.
"""
