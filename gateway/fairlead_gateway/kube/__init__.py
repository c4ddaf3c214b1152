"""The fleet as the cluster has it: for the helper process alone, since workers carry neither an HTTP client nor pydantic.

``specs`` reads what people wrote, ``fleet`` makes a snapshot of it and the pods (pure), ``source`` watches.
"""
