"""Conversion of other systems' manifests into ModelDeployments and ModelRoutes.

- `field_reader`: reads foreign objects and records which fields were read.
- `command_line`: an engine's command line as fields of a ModelDeployment.
- `pod_spec`: a container and its pod as an engine and a pod template.
- `assembly`: a ModelDeployment or a ModelRoute while it is put together.
- `adapters`: a ModelAdapter while it is put together.
- `formats`: one module for each format.

`fairlead_cli.manifest_conversion` recognizes documents and runs the conversions.
"""
