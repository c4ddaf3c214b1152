"""The benchmarks by name: the module of each, what it runs on, and how long it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Code(Enum):
    """The code that a benchmark measures."""

    SOURCES = "the sources"
    COMPILED_PROCESSES = "processes that find the compiled data plane themselves"
    COMPILED_WORKER = "the compiled data plane, in this process"
    COMPILED_SIMULATOR = "the compiled simulators and autoscaler, in this process"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark. ``module`` has ``main(arguments) -> int``.

    trace_option: how its ``main`` takes the conversation trace; None where it does not
    trace_folder: the option takes the folder of all traces
    in_all: part of a run without a name
    """

    name: str
    module: str
    summary: str
    minutes: int
    code: Code = Code.SOURCES
    trace_option: str | None = None
    trace_folder: bool = False
    in_all: bool = True


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "gateway-instructions",
            "fairlead_bench.gateway_instructions.benchmark",
            "instructions per request, chunk and routing decision, compared with an older commit",
            10,
        ),
        Benchmark(
            "tenant-instructions",
            "fairlead_bench.gateway_instructions.tenant_requests",
            "instructions of a plain request by its caller, up to a tenant with limits and a budget",
            5,
        ),
        Benchmark(
            "gateway-workers",
            "fairlead_bench.sharing.worker_scaling",
            "requests and chunks a second of a gateway with 1, 2 and more workers; needs three cores for each",
            2,
            Code.COMPILED_PROCESSES,
            in_all=False,
        ),
        Benchmark(
            "routing",
            "fairlead_bench.routing.benchmark",
            "capacity of routing presets in the fleet simulator, and a grid of them",
            60,
            Code.COMPILED_SIMULATOR,
            trace_option="--trace",
        ),
        Benchmark(
            "sharing",
            "fairlead_bench.sharing.simulated_gateways",
            "several gateways in the fleet simulator, by what they know of one another",
            10,
            trace_option="--trace",
        ),
        Benchmark(
            "gateways",
            "fairlead_bench.sharing.gateway_processes",
            "one gateway, three that share a Redis and three that share nothing, over HTTP",
            10,
        ),
        Benchmark(
            "quota",
            "fairlead_bench.quota.benchmark",
            "limits of tenants: while gateways die and Redis loses its state, and compared with others",
            30,
            Code.COMPILED_PROCESSES,
        ),
        Benchmark(
            "scheduling",
            "fairlead_bench.scheduling",
            "admission before simulated engines: two SLOs, long prompts among short ones, memory",
            10,
        ),
        Benchmark(
            "canary",
            "fairlead_bench.canary",
            "the judge of canaries: false rollbacks, and the time until a regression is found",
            4,
        ),
        Benchmark(
            "fairness",
            "fairlead_bench.fairness.benchmark",
            "a flooding tenant and steady ones before three gateways, and attacks on the caches of tenants",
            6,
        ),
        Benchmark(
            "flood",
            "fairlead_bench.fairness.flood_benchmark",
            "a flooding tenant and steady ones, on processes, compared with one ideal queue; overload",
            30,
            Code.COMPILED_PROCESSES,
        ),
        Benchmark(
            "adapters",
            "fairlead_bench.adapters",
            "placement of LoRA adapters by the gateway's rule and by published ones, on a virtual clock",
            2,
        ),
        Benchmark(
            "autoscaler",
            "fairlead_bench.autoscaler.benchmark",
            "the autoscaler and the presets of other autoscalers, compared with an offline optimum",
            60,
            Code.COMPILED_SIMULATOR,
            trace_option="--traces",
            trace_folder=True,
        ),
        Benchmark(
            "autoscaler-targets",
            "fairlead_bench.autoscaler.several_targets",
            "the smooth days at several targets: the attained share, and what it costs",
            15,
            Code.COMPILED_SIMULATOR,
            in_all=False,
        ),
        Benchmark(
            "autoscaler-missed-share",
            "fairlead_bench.autoscaler.missed_share.benchmark",
            "the missed share that the autoscaler predicts, compared with that of fixed fleets of four plants",
            10,
            Code.COMPILED_SIMULATOR,
            in_all=False,
        ),
        Benchmark(
            "autoscaler-fleet",
            "fairlead_bench.autoscaler.fleet_simulator",
            "the autoscaler and presets of others in the fleet simulator: caches and the gateway's router",
            90,
            Code.COMPILED_SIMULATOR,
            trace_option="--traces",
            trace_folder=True,
            in_all=False,
        ),
        Benchmark(
            "autoscaler-properties",
            "fairlead_bench.autoscaler.property_tests",
            "the autoscaler's property tests with 10,000 examples each",
            120,
            Code.COMPILED_SIMULATOR,
            in_all=False,
        ),
        Benchmark(
            "autoscaler-outside",
            "fairlead_bench.outside_plant.benchmark",
            "the autoscaler in a second plant that shares no code with the simulator",
            15,
            Code.COMPILED_SIMULATOR,
        ),
        Benchmark(
            "autoscaler-outside-presets",
            "fairlead_bench.outside_plant.presets",
            "the autoscaler and presets of others in that second plant",
            30,
            Code.COMPILED_SIMULATOR,
            in_all=False,
        ),
        Benchmark(
            "sleep-tier",
            "fairlead_bench.autoscaler.sleep_tier",
            "the autoscaler with a tier of sleeping replicas, and without",
            10,
            Code.COMPILED_SIMULATOR,
            trace_option="--traces",
            trace_folder=True,
        ),
        Benchmark(
            "routes",
            "fairlead_bench.routes.request_cost",
            "processor time that a route adds to a request: alias, split, tenant check, parameters",
            1,
            Code.COMPILED_PROCESSES,
        ),
        Benchmark(
            "shadow",
            "fairlead_bench.routes.shadow_cost",
            "processor time that a shadow adds to the request that is copied",
            1,
            Code.COMPILED_PROCESSES,
        ),
        Benchmark(
            "fallbacks",
            "fairlead_bench.routing.fallback_search",
            "the search for the next model of a request that one has not answered",
            1,
            Code.COMPILED_WORKER,
        ),
        Benchmark(
            "mix",
            "fairlead_bench.mix.benchmark",
            "accelerator mixes compared with one kind; prefill and decode after traffic shifts",
            5,
        ),
        Benchmark(
            "agreement",
            "fairlead_bench.accuracy.fleet_vs_http",
            "the simulator compared with gateways and simulated engines over HTTP",
            15,
        ),
        Benchmark(
            "fitted",
            "fairlead_bench.accuracy.vllm_fit",
            "the simulator compared with two vLLM engines; installs 6 GB the first time",
            60,
            in_all=False,
        ),
        Benchmark(
            "operator",
            "fairlead_bench.operator.benchmark",
            "the operator and a thousand models before an API server",
            30,
        ),
        Benchmark(
            "index",
            "fairlead_bench.index.benchmark",
            "the indexer, replicas of the index and Redis",
            8,
            Code.COMPILED_WORKER,
        ),
        Benchmark(
            "large-bodies",
            "fairlead_bench.large_bodies",
            "stalls of a worker's event loop by large bodies, compared with parsing in a thread",
            2,
        ),
        Benchmark(
            "hardening",
            "fairlead_bench.hardening",
            "attacks on control requests, connections, callers, namespaces, engines and the event loop",
            5,
        ),
        Benchmark(
            "gateway",
            "fairlead_bench.gateway.benchmark",
            "processor time and memory of the gateway, compared with Envoy, nginx and others",
            60,
            Code.COMPILED_PROCESSES,
        ),
    )
}
