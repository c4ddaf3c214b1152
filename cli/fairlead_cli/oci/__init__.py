"""OCI artefacts: images and charts in folders, archives and registries.

Read in this order:

- ``documents``: media types, descriptors, bytes that do not vary.
- ``layout``: a folder or an archive with artefacts.
- ``reference``: names of artefacts.
- ``registry``: a client of the distribution API.
- ``transfer``: copies between layouts and registries.
"""
