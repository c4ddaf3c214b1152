"""LoRA adapters as gateways see them: immutable data of a model in a fleet."""

from dataclasses import dataclass

from fairlead.adapters.download import AdapterDownload

DEFAULT_ADAPTER_SLOTS = 8
"""Adapters that one engine holds at a time, if its model does not say how many."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter of a model, which is its base.

    name: what engines call it, and clients together with its namespace.
    source: path or name from which an engine loads it, as the engine knows it.
    client_names: what clients call it without its namespace; None: its name.
    replicas: engines that keep it loaded; 0: it is loaded only when a request names it.
    download: what the downloader of a pod fetches before its engine can load it; None if the engine
        finds it by itself.
    """

    name: str
    source: str
    client_names: tuple[str, ...] | None = None
    replicas: int = 0
    download: AdapterDownload | None = None

    @property
    def bare_names(self) -> tuple[str, ...]:
        return (self.name,) if self.client_names is None else self.client_names
