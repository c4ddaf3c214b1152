"""LoRA adapters: small weights that an engine adds to a model on demand.

- `model`: an adapter as gateways see it.
- `download`: what a downloader in the engine's pod fetches, and where it lies.
- `resolution`: what the engines of a model can load, from the specs of a cluster.
"""
