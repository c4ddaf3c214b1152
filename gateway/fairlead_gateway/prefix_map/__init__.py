"""The prefix map: from the bytes that gateways route by to the token blocks that engines report.

Pure: no clock and no I/O. The supervisor and the simulator use it.

In reading order:

- `translator`: engine reports in terms of byte prefixes
- `links`: links from byte blocks to token blocks, and those of a prompt as bytes
- `cache_correction`: a change of what an instance caches
"""
