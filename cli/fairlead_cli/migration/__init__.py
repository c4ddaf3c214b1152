"""Conversion of other systems' manifests into ModelDeployments.

- `field_reader`: reads foreign objects and records which fields were read.
- `command_line`: an engine's command line as fields of a ModelDeployment.
- `pod_spec`: a container and its pod as an engine and a pod template.
- `draft`: a ModelDeployment while it is put together.
- `kserve`, `kserve_predictor`, `aibrix`, `kubeai`, `llm_d`, `litellm`, `production_stack`: one
  module for each format.
- `systems`: recognizes documents and runs the conversions.
"""
