"""Engine adapters: one file per kind of engine, found by name. Adding an engine is one file and its recorded metrics as tests."""

from fairlead.engines.base import EngineAdapter, EngineLaunch, EngineReplica
from fairlead.engines.sglang import Sglang
from fairlead.engines.sim import SimulatedEngine
from fairlead.engines.vllm import Vllm
from fairlead.errors import BadInput

__all__ = ["EngineAdapter", "EngineLaunch", "EngineReplica", "engine_adapter", "engine_kinds"]


def _adapters() -> dict[str, EngineAdapter]:
    return {found.kind: found for found in (Vllm(), Sglang(), SimulatedEngine())}


def engine_kinds() -> tuple[str, ...]:
    """The kinds that have an adapter."""
    return tuple(_adapters())


def engine_adapter(kind: str) -> EngineAdapter:
    """The adapter of one kind. Raises BadInput naming the known ones."""
    known = _adapters()
    if kind not in known:
        raise BadInput(f"no engine is called {kind!r}", field="engine.kind", hint=f"known: {', '.join(known)}")
    return known[kind]
