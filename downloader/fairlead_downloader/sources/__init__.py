"""The stores that adapters come from. Each writes the files of one download.

- `object_store`: S3 and Google Cloud Storage.
- `hub`: Hugging Face, and hubs with its API.
- `oci_registry`: OCI registries, their tokens, and files in their layers.
- `http_source`: the HTTP client of hubs and registries.
"""
