"""The API of Fairlead: the types of what users write in manifests.

- `v1alpha1`: the kinds ModelDeployment, AcceleratorClass and ModelTenant.
- `kinds`: their names, scope and columns for Kubernetes.
- `spec/`: one module per section of a spec.
- `status`, `conditions`: what the operator reports.
- `price`, `value_types`, `strict_model`: what the types are built from.
- `builtin_accelerators`: the accelerator classes that need no manifest.
- `crd`: the CustomResourceDefinitions, generated from the types.

docs/reference/api.md describes every field.
"""
