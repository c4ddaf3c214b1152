"""Engine adapters: one module per kind of engine.

- `base`: the adapter protocol; `vllm`, `sglang` and `sim` implement it.
- `prometheus_scan`: fast reading of engine metrics.
- `credentials`: CA files and bearer tokens for connecting to engines.
- `sleep_mode`, `sleep_control`: vLLM's sleep mode, and when to use it.
- `containers/`: how engines run in pods.

A new engine is one module, with recorded metrics as tests.
"""

from fairlead.engines.base import EngineAdapter, EngineLaunch, EngineReplica
from fairlead.engines.sglang import Sglang
from fairlead.engines.sim import SimulatedEngine
from fairlead.engines.vllm import Vllm
from fairlead.errors import BadInput

__all__ = ["EngineAdapter", "EngineLaunch", "EngineReplica", "engine_adapter", "engine_kinds"]


def _adapters() -> dict[str, EngineAdapter]:
    return {found.kind: found for found in (Vllm(), Sglang(), SimulatedEngine())}


def engine_kinds() -> tuple[str, ...]:
    """Returns the kinds of engines that have an adapter."""
    return tuple(_adapters())


def engine_adapter(kind: str) -> EngineAdapter:
    """Returns the adapter of a kind. Raises BadInput, listing the known kinds."""
    known = _adapters()
    if kind not in known:
        raise BadInput(f"no engine is called {kind!r}", field="engine.type", hint=f"known: {', '.join(known)}")
    return known[kind]
