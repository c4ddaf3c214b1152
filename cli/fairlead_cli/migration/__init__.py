"""Conversion of other systems' manifests into ModelDeployments and ModelRoutes.

- `field_reader`: reads foreign objects and records which fields were read.
- `command_line`: an engine's command line as fields of a ModelDeployment.
- `pod_spec`: a container and its pod as an engine and a pod template.
- `drafts`: models, pools and engines while they are read.
- `references`: names in a pod that must hold in Fairlead's pod.
- `assembly`: a ModelDeployment or a ModelRoute put together from drafts.
- `adapters`: a ModelAdapter while it is put together.
- `formats`: one module for each format.

`fairlead_cli.manifest_conversion` recognizes documents and runs the conversions.
"""
