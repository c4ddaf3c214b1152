"""The adapters of all kinds of engines."""

from fairlead.engines.adapter_protocol import EngineAdapter
from fairlead.engines.llama_cpp import LlamaCpp
from fairlead.engines.sglang import Sglang
from fairlead.engines.sim import SimulatedEngine
from fairlead.engines.tensorrt_llm import TensorrtLlm
from fairlead.engines.vllm import Vllm
from fairlead.errors import BadInput


def _adapters() -> dict[str, EngineAdapter]:
    return {found.kind: found for found in (Vllm(), Sglang(), LlamaCpp(), TensorrtLlm(), SimulatedEngine())}


def engine_kinds() -> tuple[str, ...]:
    return tuple(_adapters())


def engine_adapter(kind: str) -> EngineAdapter:
    """Returns the adapter of a kind. Raises BadInput, listing the known kinds."""
    known = _adapters()
    if kind not in known:
        raise BadInput(f"no engine is called {kind!r}", field="engine.type", hint=f"known: {', '.join(known)}")
    return known[kind]
