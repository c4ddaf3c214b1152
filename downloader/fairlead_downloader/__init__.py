"""The adapter downloader: a container in an engine's pod, which fetches LoRA adapters for it.

- `__main__`: the process, with its API for gateways.
- `adapter_store`: downloads that are shared, and folders that are evicted.
- `folder_writer`: files of a download: safe names, limits, hashes, and the digest of the folder.
- `sources`: S3, Google Cloud Storage, hubs like Hugging Face, OCI registries.
- `errors`: why a download fails.
"""
