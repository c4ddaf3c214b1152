"""Manifests: reads, checks and lints YAML files without a cluster.

- `yaml_nodes`: YAML text to nodes with line numbers.
- `loader`: nodes to checked ModelDeployments and AcceleratorClasses.
- `files`: the files that a command names, and those of a folder that hold no Kubernetes object.
- `validation_messages`: pydantic errors to problems with line, field and fix.
- `lint`: notes on valid manifests.
"""
