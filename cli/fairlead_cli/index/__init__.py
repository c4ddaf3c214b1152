"""``fairlead index``: `connection` (which Redis) → `snapshot` (the index in Redis) → `stats`,
`prefix_match`, `verification` (with what engines can replay).

`change_stream` follows changes, `command` runs all.
"""
