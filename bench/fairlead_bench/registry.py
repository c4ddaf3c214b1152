"""The benchmarks and their parts: the module of each part, its code, and how long it takes."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path


class Code(Enum):
    """The code that a benchmark measures."""

    SOURCES = "the sources"
    COMPILED_PROCESSES = "processes that find the compiled data plane themselves"
    COMPILED_WORKER = "the compiled data plane, in this process"
    COMPILED_SIMULATOR = "the compiled simulators and autoscaler, in this process"


PROCESSES, WORKER, SIMULATOR = Code.COMPILED_PROCESSES, Code.COMPILED_WORKER, Code.COMPILED_SIMULATOR


@dataclass(frozen=True, slots=True)
class BenchmarkPart:
    """A part of a benchmark, which ``make bench-NAME`` runs.

    path: of its module below ``fairlead_bench``, which has ``main(arguments) -> int``
    trace_option: how ``main`` takes the conversation trace; ``--traces`` takes a folder
    in_all: part of a run without a name
    """

    name: str
    path: str
    minutes: int
    code: Code = Code.SOURCES
    trace_option: str | None = None
    in_all: bool = True

    @property
    def module(self) -> str:
        return f"fairlead_bench.{self.path}"

    def summary(self) -> str:
        """Returns the first paragraph of the module's docstring."""
        spec = find_spec(self.module)
        assert spec is not None
        text = ast.get_docstring(ast.parse(Path(spec.origin or "").read_text(encoding="utf-8"))) or ""
        return " ".join(text.partition("\n\n")[0].split())


BENCHMARKS: Mapping[str, tuple[BenchmarkPart, ...]] = {
    "gateway": (
        BenchmarkPart("gateway", "gateway.benchmark", 60, PROCESSES),
        BenchmarkPart("gateway-workers", "sharing.worker_scaling", 2, PROCESSES, in_all=False),
    ),
    "gateway-instructions": (
        BenchmarkPart("gateway-instructions", "gateway_instructions.benchmark", 10),
        BenchmarkPart("stream-instructions", "gateway_instructions.stream_continuation", 8),
        BenchmarkPart("tenant-instructions", "gateway_instructions.tenant_requests", 5),
    ),
    "routes": (
        BenchmarkPart("routes", "routes.request_cost", 1, PROCESSES),
        BenchmarkPart("shadow", "routes.shadow_cost", 1, PROCESSES),
        BenchmarkPart("fallbacks", "routes.fallback_search", 1, WORKER),
    ),
    "routing": (BenchmarkPart("routing", "routing.benchmark", 60, SIMULATOR, "--trace"),),
    "sharing": (
        BenchmarkPart("sharing", "sharing.simulated_gateways", 10, trace_option="--trace"),
        BenchmarkPart("gateways", "sharing.gateway_processes", 10),
        BenchmarkPart("knowledge-processes", "sharing.knowledge_processes", 40, PROCESSES, in_all=False),
    ),
    "agents": (BenchmarkPart("agents", "agents.benchmark", 8, PROCESSES),),
    "quota": (BenchmarkPart("quota", "quota.benchmark", 15, PROCESSES),),
    "fairness": (
        BenchmarkPart("fairness", "fairness.cache_timing", 3),
        BenchmarkPart("flood", "fairness.flood_benchmark", 30, PROCESSES),
    ),
    "autoscaler": (
        BenchmarkPart("autoscaler", "autoscaler.benchmark", 60, SIMULATOR, "--traces"),
        BenchmarkPart("autoscaler-fleet", "autoscaler.fleet_simulator", 90, SIMULATOR, "--traces", in_all=False),
        BenchmarkPart("autoscaler-outside", "outside_plant.benchmark", 15, SIMULATOR),
        BenchmarkPart("sleep-tier", "autoscaler.sleep_tier", 10, SIMULATOR, "--traces"),
    ),
    "mix": (BenchmarkPart("mix", "mix.benchmark", 5),),
    "accuracy": (
        BenchmarkPart("agreement", "accuracy.fleet_vs_http", 15),
        BenchmarkPart("fitted", "accuracy.vllm_fit", 60, in_all=False),
    ),
    "operator": (BenchmarkPart("operator", "operator.benchmark", 30),),
    "index": (BenchmarkPart("index", "index.benchmark", 8, WORKER),),
    "nightly": (BenchmarkPart("canary", "canary", 4, in_all=False),),
}
"""The parts of each subject. A nightly test judges those of ``nightly``."""

PARTS: Mapping[str, BenchmarkPart] = {part.name: part for parts in BENCHMARKS.values() for part in parts}
