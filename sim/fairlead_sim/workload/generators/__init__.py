"""Generated traffic, one family per module, from seeds.

Routers are compared on the five ``FAMILIES`` and on recorded traces (``docs/concepts/routing.md``).

- ``agents``, ``tenants``, ``rag``, ``flash_crowd``, ``bursty``: the families
- ``chat``: a session that several families use
- ``conversation``: a substitute for Mooncake's recorded trace
- ``building_blocks``: growing prompts, Zipf popularity, arrivals
"""

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
    """A generator of the first ``requests`` requests, about 12,000 per hour."""

    def __call__(self, requests: int, *, seed: int) -> list[TraceRequest]: ...


FAMILIES: Mapping[str, TrafficFamily] = {
    "agents": agent_traffic,
    "tenants": tenant_traffic,
    "rag": rag_traffic,
    "flash-crowd": flash_crowd_traffic,
    "bursty": bursty_chat,
}
"""The five families over which benchmarks average, by name."""
