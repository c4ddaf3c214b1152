"""``fairlead catalog``: manifests of widely used models, with a checked sum of their memory.

- `models/`: the entries, one YAML file for each family, each figure with its source.
- `entry`: an entry, and how it is read.
- `architecture`: parameters, bytes of weights and bytes of KV from the figures of a config.json.
- `roofline`: the speed of a model on accelerators, from data sheets.
- `memory_plan`: the devices that a model needs, and what does not fit.
- `command`: the verbs, the manifest of an entry, and the table of models.
"""
