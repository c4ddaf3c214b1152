"""LoRA adapters: small weights that an engine adds to a model on demand.

- `model`: an adapter as gateways see it.
- `resolution`: what the engines of a model can load, from the specs of a cluster.
"""
