"""Archives for clusters without a way to the internet: chart, images and CRDs in one file.

Read in this order:

- ``archive``: what such a file holds, how it is written, read and checked.
- ``create``: makes one from the files of a release, or from a registry.
- ``load``: pushes one into a registry.
"""
