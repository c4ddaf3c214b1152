"""The prefix map: from the bytes that gateways route by to the token blocks that engines report.

Pure: no clock and no I/O. The supervisor and the simulator use it.

In reading order:

- `translator`: engine reports in terms of byte prefixes
- `token_links`: links from byte blocks to token blocks
- `prompt_alignment`: what links are learned from
- `cache_correction`: a change of what an instance caches
"""
