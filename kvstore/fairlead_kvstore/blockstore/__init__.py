"""The block store: the blocks that each instance has cached, derived from its KV events alone.

No I/O and no clock. In reading order:

- `block_hash`: the content hash that names a block; `storage_tiers`: the tiers where a block can be
- `store`: `BlockStore`, all instances of one indexer; `changes`: the values that its methods return
- `instance_blocks`: the rules for the events of one instance; `block_table`: its rows in typed
  arrays
- `pending_runs`: the blocks of one event, and those whose parent is unknown
- `adapter_loads`: which load of each LoRA adapter counts
- `completeness`: how complete an instance is known; `types`: counters, states and snapshots
- `snapshot`: an instance as bytes, for the next indexer
"""
