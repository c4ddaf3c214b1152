"""Traffic from seeds, a family a file: what routers are compared on beside recorded traces (docs/guides/routing.md)."""

from collections.abc import Mapping
from typing import Protocol

from fairlead_sim.traces import TraceRequest
from fairlead_sim.traffic.agents import agent_sessions, agents
from fairlead_sim.traffic.bursty import bursty
from fairlead_sim.traffic.conversation import ConversationShape, conversation
from fairlead_sim.traffic.flash_crowd import flash_crowd
from fairlead_sim.traffic.rag import rag
from fairlead_sim.traffic.tenants import tenants

__all__ = ["FAMILIES", "ConversationShape", "agent_sessions", "conversation"]


class Family(Protocol):
    """Makes the first ``requests`` requests of a family, at the pace of about 12,000 an hour."""

    def __call__(self, requests: int, *, seed: int) -> list[TraceRequest]: ...


FAMILIES: Mapping[str, Family] = {
    "agents": agents,
    "tenants": tenants,
    "rag": rag,
    "flash-crowd": flash_crowd,
    "bursty": bursty,
}
"""The five that ratios are taken over, by name."""
