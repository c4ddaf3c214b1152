"""Traffic from seeds, a family a file: what routers are compared on beside recorded traces (docs/guides/routing.md)."""

from collections.abc import Mapping
from typing import Protocol

from fairlead_sim.workload.generators.agents import agent_sessions, agent_traffic
from fairlead_sim.workload.generators.bursty import bursty_chat
from fairlead_sim.workload.generators.conversation import ConversationShape, conversation_traffic
from fairlead_sim.workload.generators.flash_crowd import flash_crowd_traffic
from fairlead_sim.workload.generators.rag import rag_traffic
from fairlead_sim.workload.generators.tenants import tenant_traffic
from fairlead_sim.workload.traces import TraceRequest

__all__ = ["FAMILIES", "ConversationShape", "agent_sessions", "conversation_traffic"]


class TrafficFamily(Protocol):
    """Makes the first ``requests`` requests of a family, at the pace of about 12,000 an hour."""

    def __call__(self, requests: int, *, seed: int) -> list[TraceRequest]: ...


FAMILIES: Mapping[str, TrafficFamily] = {
    "agents": agent_traffic,
    "tenants": tenant_traffic,
    "rag": rag_traffic,
    "flash-crowd": flash_crowd_traffic,
    "bursty": bursty_chat,
}
"""The five that ratios are taken over, by name."""
