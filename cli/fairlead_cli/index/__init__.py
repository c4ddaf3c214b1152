"""``fairlead index``: `connection` (which Redis) → `snapshot` (the index in Redis, with the blocks
of `loaded_index`) → `stats`, `prefix_match`, `verification` (with what engines can replay).

`change_stream` follows changes, `command` runs all.
"""
