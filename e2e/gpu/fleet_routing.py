"""A fleet of engines under the routing presets: costs, replays of the bundled trace, and the index.

Every preset gets empty caches, a new gateway and the same requests. Their rate follows from the
measured costs: prompts without any cache hit would take a given share of the engines' time. So fast
and slow accelerators are loaded alike.
"""

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import httpx

from e2e.gpu.control_plane import SLO, ControlPlane
from e2e.gpu.engines import MODEL, EngineGroup, used_memory_bytes
from e2e.gpu.index_probes import cached_tokens, compare_index
from e2e.gpu.step_costs import FLEET_GRID, CostGrid, fit_profile, measure_step_costs, profile_errors
from e2e.vllm.engine.engine_processes import GatewayProcess
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead.fleet.file import profile_fields
from fairlead_cli.replay.client.open_loop_client import ClientRun, OpenLoopClient
from fairlead_cli.replay.client.prompts import PromptBuilder, ReplayTarget, plan_requests
from fairlead_cli.replay.client.replay_result import ReplayResult
from fairlead_cli.replay.report.summary import summarize
from fairlead_cli.replay.traffic import load_traffic
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.workload.traces import BUNDLED_TRACE

PRESETS: Final = ("dual-hash", "round-robin", "least-request")
LOAD: Final = 0.8
_COST_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 90.0
_SEED: Final = 7


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """The extent of the part.

    load: share of the engines' time that the prompts take without any cache hit; gives the rate.
    rounds: how often every preset is replayed.
    until: monotonic seconds after which no replay of a later round begins.
    probes: prompts by which the index is compared with the engines.
    """

    requests: int = 500
    load: float = LOAD
    rounds: int = 1
    until: float = math.inf
    probes: int = 100
    presets: Sequence[str] = PRESETS
    grid: CostGrid = FLEET_GRID


class FleetRouting:
    """The part `fleet`. out: gets the measurements of single requests."""

    def __init__(
        self, group: EngineGroup, plane: ControlPlane, report: VllmReport, options: RoutingOptions, out: Path
    ) -> None:
        self._group = group
        self._plane = plane
        self._report = report
        self._options = options
        self._out = out
        self._traffic = load_traffic(BUNDLED_TRACE, limit=options.requests, rate=None)
        self._builder = PromptBuilder(Tokenizer())

    async def run(self) -> None:
        """Measures the costs, replays and probes, in this order. The engines run already."""
        await self._report.check("step costs, all engines at once", self._measure_costs)
        for number, preset in itertools.product(range(self._options.rounds), self._options.presets):
            if number and time.monotonic() > self._options.until:
                break
            name = f"{preset}, round {number + 1}"
            await self._report.check(f"replay: {name}", lambda: self._replay(preset, number))  # noqa: B023
            if number == 0 and preset == self._options.presets[0]:
                await self._report.check("index compared with the engines", self._probe_index)

    async def _measure_costs(self) -> Numbers:
        costs = await measure_step_costs(
            self._group, self._options.grid, seconds=_COST_SECONDS, on_row=lambda row: print(row, flush=True)
        )
        profile = fit_profile(costs)
        self._plane.profile = profile
        seconds = fmean(profile.prefill_time(request.prompt_tokens) for request in self._traffic.requests)
        rate = self._options.load * len(self._group.slots) / seconds
        self._traffic = self._traffic.with_rate(round(rate, 2))
        memory = used_memory_bytes()
        numbers: Numbers = {
            "profile": profile_fields(profile),
            "fit_errors": profile_errors(profile, costs).to_json(),
            **costs.to_json(),
            "load": self._options.load,
            "rate": self._traffic.rate,
            "gpu_memory_used_gib": None if memory is None else round(memory / 2**30, 1),
        }
        (self._out / "fleet-costs.json").write_text(json.dumps(numbers, indent=1))
        return numbers

    async def _replay(self, preset: str, number: int) -> Numbers:
        await self._clear_caches()
        gateway = self._plane.start_gateway(preset)
        observes = number == 0 and preset == self._options.presets[0]
        autoscaler = self._plane.start_autoscaler(gateway) if observes else None
        try:
            run = await self._send(gateway)
            results = run.results
            numbers = self._summarize(results) | {"client_late_p99_seconds": round(run.late_p99_seconds, 4)}
            if autoscaler is not None:
                numbers["autoscaler"] = autoscaler.last_record()
        finally:
            await asyncio.to_thread(gateway.stop)
        rows = [_row(result) for result in results]
        (self._out / f"replay-{preset}-{number + 1}.json").write_text(
            json.dumps({"rate": self._traffic.rate, "rows": rows})
        )
        require(not numbers["errors"], "requests failed", numbers)
        if autoscaler is not None:
            require(numbers["autoscaler"]["engines"], "the autoscaler sees no metrics of the engines", numbers)
        return numbers

    async def _send(self, gateway: GatewayProcess) -> ClientRun:
        target = ReplayTarget(gateway.url, model=MODEL)
        plan = plan_requests(self._traffic.requests, target, speed=1.0, builder=self._builder)
        return await OpenLoopClient(target.host, target.port, patience_seconds=_PATIENCE_SECONDS).run(plan)

    def _summarize(self, results: Sequence[ReplayResult]) -> Numbers:
        summary = summarize(results, objectives=SLO, instances=len(self._group.slots)).to_json()
        tpots = sorted(result.itl_mean_seconds for result in results if result.itl_mean_seconds is not None)
        errors = [result.error for result in results if result.error is not None]
        return {
            **summary,
            "tpot_seconds": {"mean": fmean(tpots), "p50": tpots[len(tpots) // 2]} if tpots else None,
            "rate": self._traffic.rate,
            "seconds": round(max(result.finished_seconds or 0.0 for result in results), 1),
            "first_errors": errors[:3],
        }

    async def _probe_index(self) -> Numbers:
        drawn = random.Random(_SEED).sample(
            list(self._traffic.requests), min(self._options.probes, self._options.requests)
        )
        return await compare_index(self._group, self._plane, [self._builder.messages(request) for request in drawn])

    async def _clear_caches(self) -> None:
        """Empties every cache. An engine publishes it with its next step, so each gets a request
        after it.
        """
        async with httpx.AsyncClient(timeout=60.0) as client:
            for number, engine in enumerate(self._group.engines.values()):
                (await client.post(f"{engine.url}/reset_prefix_cache")).raise_for_status()
                await cached_tokens(client, engine.url, [1_000 + number] * 8)


def _row(result: ReplayResult) -> dict[str, Any]:
    """Returns what a later simulation needs of a request."""
    return {
        "id": result.id,
        "instance": result.instance,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "output_tokens": result.output_tokens,
        "ttft_seconds": result.ttft_seconds,
        "tpot_seconds": result.itl_mean_seconds,
        "finished_seconds": result.finished_seconds,
        "reason": result.reason,
        "error": result.error,
    }
