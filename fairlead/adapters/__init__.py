"""LoRA adapters: small weights that an engine adds to a model on demand.

- `model`: an adapter as gateways see it.
"""
