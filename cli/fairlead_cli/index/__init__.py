"""``fairlead index``: `options` → `address` → `connection` → `snapshot` (the index in Redis) →
`stats`, `prefix_match`, `verification`.

`change_stream` follows changes, `engine_replay` reads what an engine can replay, `command` runs
all.
"""
