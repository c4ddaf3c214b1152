"""The capacity of replicas, measured without a controller.

- ``fixed_fleet``: a constant number of replicas at a constant rate, and the share that misses
"""
