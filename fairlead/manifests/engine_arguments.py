"""Lint rules on `engine.args` and `args` of pools: arguments that Fairlead sets itself, that break
routing, or that the engine does not know.

Arguments follow Fairlead's own and win. The engine then may not be reached, or differ from the rest
of the spec.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.kv_cache import Transfer
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.manifests.known_flags import flag_problem, is_checked_image

_OFF: Final = ("false", "0", "no")
_REMOVE: Final = "remove it"


class Argument(NamedTuple):
    """An argument of an engine: `--name=value`, or `--name` with a value in the next argument.

    position: its index in the list.
    value: None without one.
    """

    position: int
    name: str
    value: str | None


@dataclass(frozen=True, slots=True)
class _Conflict:
    """A reason not to give an argument, and what to do instead.

    is_wrong: returns False for specs and values with which the argument does no harm.
    """

    message: str
    fix: str
    is_wrong: Callable[[ModelDeploymentSpec, str | None], bool] = lambda spec, value: True


class ArgumentNote(NamedTuple):
    """A note on the argument at `path` of a spec."""

    path: tuple[str | int, ...]
    message: str
    fix: str


def _size(name: str) -> _Conflict:
    """Returns the conflict of a parallelism flag that differs from `parallelism` of a pool."""

    def differs(spec: ModelDeploymentSpec, value: str | None) -> bool:
        return any(value != str(getattr(pool.parallelism, name)) for pool in spec.pools)

    return _Conflict(
        f"`parallelism.{name}` of a pool says something else; by that, a pod gets its devices",
        f"remove it, and write `parallelism: {{{name}: NUMBER}}` in the pool",
        differs,
    )


def _unless_off(spec: ModelDeploymentSpec, value: str | None) -> bool:
    return value is not None and value.lower() in _OFF


_ADDRESS: Final = _Conflict("gateways and probes reach the engine at the address that Fairlead sets", _REMOVE)
_TLS: Final = _Conflict("gateways and probes speak HTTP without TLS to the engines of a ModelDeployment", _REMOVE)
_API_KEY: Final = _Conflict(
    "gateways and probes send the engine no key, so it refuses every request",
    "remove it: gateways check the keys of clients, and a NetworkPolicy protects engines",
)
_PREFIX_CACHE: Final = _Conflict("without its prefix cache, routing by prefix gains nothing", _REMOVE)
_NODES: Final = _Conflict("`parallelism.nodes` of a pool sets it", _REMOVE)
_FETCH: Final = _Conflict(
    "the engine then fetches any URL that a request names, also inside the cluster",
    "remove it, or restrict the pods' egress by a NetworkPolicy",
)
_SPLIT: Final = _Conflict(
    "`parallelism` of a pool sets it", "remove it, and write `parallelism: {tensor: NUMBER}` or `{pipeline: NUMBER}`"
)
_MODEL: Final = _Conflict("`spec.model` names the weights", "remove it, and write the source in `model.uri`")
_REVISION: Final = _Conflict(
    "`model.revision` says something else",
    _REMOVE,
    lambda spec, value: spec.model.revision not in (None, value),
)
_EVENTS: Final = _Conflict(
    "Fairlead sets it; with other settings, the index learns no block of this engine",
    "remove it, or write `kvCache: {events: false}`",
    lambda spec, value: spec.kv_cache.events,
)
_ADAPTERS: Final = _Conflict(
    "`spec.adapters` sets it", "remove it, and set `adapters`", lambda spec, value: spec.adapters is not None
)
_METRICS: Final = _Conflict("gateways and the autoscaler read the load from the engine's metrics", _REMOVE)
_CONFIG: Final = _Conflict(
    "it replaces the file by which Fairlead turns the metrics on", "write `return_perf_metrics: true` in your file, too"
)
_ROLE: Final = _Conflict("Fairlead does not split prefill from decode with TensorRT-LLM", _REMOVE)
_BOTH: Final[Mapping[str, _Conflict]] = {
    "--host": _ADDRESS,
    "--port": _ADDRESS,
    "--ssl-keyfile": _TLS,
    "--ssl-certfile": _TLS,
    "--api-key": _API_KEY,
    "--nnodes": _NODES,
    "--node-rank": _NODES,
    "--revision": _REVISION,
    "--kv-events-config": _EVENTS,
    "--enable-lora": _ADAPTERS,
    "--max-lora-rank": _ADAPTERS,
    "--tensor-parallel-size": _size("tensor"),
    "--pipeline-parallel-size": _size("pipeline"),
    "--data-parallel-size": _size("data"),
    "--model": _MODEL,
}
_WHOLE_MODEL: Final = "gateways treat the engines of all pools alike"
_OF_ALL_POOLS: Final[Mapping[str, _Conflict]] = {
    "--served-model-name": _Conflict(_WHOLE_MODEL, "remove it; see `model.servedNames`"),
    "--scheduling-policy": _Conflict(_WHOLE_MODEL, "write it in `engine.args`"),
    "--enable-priority-scheduling": _Conflict(_WHOLE_MODEL, "write it in `engine.args`"),
}
"""Arguments that are no pool's own."""
_CONFLICTS: Final[Mapping[EngineType, Mapping[str, _Conflict]]] = {
    EngineType.VLLM: {
        **_BOTH,
        "-tp": _size("tensor"),
        "-pp": _size("pipeline"),
        "-dp": _size("data"),
        "--uds": _ADDRESS,
        "--headless": _NODES,
        "--master-addr": _NODES,
        "--master-port": _NODES,
        "--max-loras": _ADAPTERS,
        "--disable-log-stats": _METRICS,
        "--no-enable-prefix-caching": _PREFIX_CACHE,
        "--enable-prefix-caching": _Conflict(_PREFIX_CACHE.message, _REMOVE, _unless_off),
        "--prefix-caching-hash-algo": _Conflict(
            "engines that share KV compute SHA-256, and vLLM 0.32 does not start with `builtin`",
            _REMOVE,
            lambda spec, value: value != "sha256",
        ),
        "--kv-transfer-config": _Conflict(
            "`spec.kvCache` sets it",
            "remove it, or remove `transfer` and `offload`",
            lambda spec, value: spec.kv_cache.transfer is not Transfer.NONE or spec.kv_cache.offload is not None,
        ),
    },
    EngineType.SGLANG: {
        **_BOTH,
        "--tp-size": _size("tensor"),
        "--tp": _size("tensor"),
        "--pp-size": _size("pipeline"),
        "--pp": _size("pipeline"),
        "--dp-size": _size("data"),
        "--dp": _size("data"),
        "--dist-init-addr": _NODES,
        "--model-path": _MODEL,
        "--max-loras-per-batch": _ADAPTERS,
        "--disable-radix-cache": _PREFIX_CACHE,
    },
    EngineType.LLAMA_CPP: {
        "--host": _ADDRESS,
        "--port": _ADDRESS,
        "--api-prefix": _ADDRESS,
        "--ssl-key-file": _TLS,
        "--ssl-cert-file": _TLS,
        "--api-key": _API_KEY,
        "--api-key-file": _API_KEY,
        "-m": _MODEL,
        "--model": _MODEL,
        "--model-url": _MODEL,
        "-hf": _MODEL,
        "--hf-repo": _MODEL,
        "--models-dir": _MODEL,
        "-sm": _SPLIT,
        "--split-mode": _SPLIT,
        "--no-cache-prompt": _PREFIX_CACHE,
        "-mm": _FETCH,
        "--mmproj": _FETCH,
        "--mmproj-url": _FETCH,
        "--mmproj-auto": _FETCH,
        "--slots": _Conflict("/slots shows the prompts of all clients", _REMOVE),
        "--log-prompts-dir": _Conflict("it writes the prompts of all clients to files", _REMOVE),
        "--tools": _Conflict("the tools run commands and write files in the engine's container", _REMOVE),
        "--agent": _Conflict("the tools run commands and write files in the engine's container", _REMOVE),
    },
    EngineType.TRTLLM: {
        "--host": _ADDRESS,
        "--port": _ADDRESS,
        "--grpc": _ADDRESS,
        "--report-addr": _ADDRESS,
        "--served-model-name": _Conflict(
            "gateways use the name that Fairlead sets", "remove it; see `model.servedNames`"
        ),
        "--revision": _REVISION,
        "--hf-revision": _REVISION,
        "--tp-size": _size("tensor"),
        "--tensor-parallel-size": _size("tensor"),
        "--pp-size": _size("pipeline"),
        "--pipeline-parallel-size": _size("pipeline"),
        "--config": _CONFIG,
        "--extra-llm-api-options": _CONFIG,
        "--server-role": _ROLE,
        "--disagg-cluster-uri": _ROLE,
        "--metadata-server-config-file": _ROLE,
        "--allow-request-chat-template": _Conflict("clients then run templates of their own in the engine", _REMOVE),
    },
}


def lint_engine_arguments(spec: ModelDeploymentSpec) -> Iterator[ArgumentNote]:
    """Yields notes on arguments; none for engines whose arguments Fairlead does not know."""
    yield from _lint_arguments(spec, spec.engine.args, ("engine", "args"), {})
    for index, pool in enumerate(spec.pools):
        yield from _lint_arguments(spec, pool.args, ("pools", index, "args"), _OF_ALL_POOLS)


def _lint_arguments(
    spec: ModelDeploymentSpec, args: Sequence[str], path: tuple[str | int, ...], more: Mapping[str, _Conflict]
) -> Iterator[ArgumentNote]:
    """Yields notes on one list. ``more``: conflicts of the place where it is."""
    known = _CONFLICTS.get(spec.engine.type)
    conflicts = {} if known is None else {**more, **known}
    is_checked = is_checked_image(spec.engine.type, spec.engine.image)
    for argument in parse_arguments(args):
        place, conflict = (*path, argument.position), conflicts.get(argument.name)
        if conflict is not None and conflict.is_wrong(spec, argument.value):
            yield ArgumentNote(place, f"{argument.name}: {conflict.message}", conflict.fix)
        elif is_checked and (problem := flag_problem(spec.engine.type, argument.name, argument.value)):
            yield ArgumentNote(place, f"{problem}, so the engine does not start", _REMOVE)


def conflicting_arguments(engine: EngineType) -> tuple[str, ...]:
    """Returns the arguments that are noted for a type of engine."""
    return tuple(_CONFLICTS.get(engine, {}))


def parse_arguments(args: Sequence[str]) -> Iterator[Argument]:
    """Yields the flags among arguments. Underscores in their names become hyphens."""
    for index, text in enumerate(args):
        if not text.startswith("-"):
            continue
        name, sign, value = text.partition("=")
        following = args[index + 1] if index + 1 < len(args) else "-"
        given = value if sign else None if following.startswith("-") else following
        yield Argument(index, name.replace("_", "-"), given)
