"""OCI artefacts of a release: images and chart in a folder, and their way into a registry.

Read in this order:

- ``documents``: media types, descriptors, bytes that do not vary.
- ``layout``: a folder with artefacts.
- ``registry``: a client that pushes them.
"""
