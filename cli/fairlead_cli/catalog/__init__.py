"""``fairlead catalog``: manifests of widely used models, with a checked sum of their memory.

- `models/`: the entries, one YAML file for each family, each figure with its source.
- `entry`: an entry, and how it is read.
- `config_file`: an entry from a model's own config.json.
- `architecture`: parameters, bytes of weights and bytes of KV from the figures of a config.json.
- `memory_plan`: the devices that a model needs, and what does not fit.
- `manifest`: the manifest of an entry.
- `command`: the verb.
- `text_output`: the table of models.
"""
