"""The autoscaler in local mode: two files of the run directory instead of an API server.

- `target`: reads the models from one file, and writes the numbers of replicas into the other.
- `state_files`: the formats of both.
"""
