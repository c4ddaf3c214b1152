"""The address of an instance: the fields that each request reads, copied once per instance.

Why: the module of `Instance` is not compiled. Each attribute that is read there costs 140
instructions, and a request reads seven.
"""

from fairlead.engines.lora_api import adapter_prefix
from fairlead.fleet.model import Instance


class EngineAddress:
    """The address of an instance. Its fields are those of `Instance`.

    url: its `address`, the key of its connections.
    adapter_prefix: what precedes the name of a LoRA adapter in requests; mostly empty.
    """

    __slots__ = (
        "adapter_prefix",
        "dp_rank",
        "engine",
        "id",
        "instance",
        "leaves_cluster",
        "namespace",
        "served_name",
        "url",
    )

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.id: str = instance.id
        self.engine: str = instance.engine
        self.namespace: str = instance.namespace
        self.url: str = instance.address
        self.leaves_cluster: bool = instance.leaves_cluster
        self.served_name: str | None = instance.served_name
        self.dp_rank: int | None = instance.dp_rank
        self.adapter_prefix: str = adapter_prefix(instance.engine, instance.model)

    def adapter_model(self, adapter: str) -> str | None:
        """Returns the model that requests for an adapter name; None for the adapter alone."""
        return f"{self.adapter_prefix}{adapter}" if self.adapter_prefix else None
