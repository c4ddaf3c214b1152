"""The fleet as the cluster has it, for gateways' helpers and indexers; workers carry neither an HTTP client nor pydantic.

``specs`` reads what people wrote, ``fleet`` makes a snapshot of it and the pods (pure), ``source`` watches, ``opening`` starts.
"""
