"""LoRA adapters as gateways see them: immutable data of a model in a fleet."""

from dataclasses import dataclass

DEFAULT_ADAPTER_SLOTS = 8
"""Adapters that one engine holds at a time, if its model does not say how many."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter of a model, which is its base.

    name: what clients and engines call it.
    source: path or name from which an engine loads it, as the engine knows it.
    """

    name: str
    source: str
