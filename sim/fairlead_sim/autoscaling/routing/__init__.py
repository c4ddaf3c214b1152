"""The gateway's routing rules on the plant's load.

- ``prefill_placement``: the engine that computes a prompt
- ``by_shape``: the accelerator class for a request
- ``load_balancing``: the replica, by the load that a gateway compares
"""
