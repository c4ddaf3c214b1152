"""Processor time that a shadow adds to the request that is copied.

    python -m fairlead_bench shadow [--seed 1]

An alias with a shadow is parsed in turns with the model's own name, as in `request_cost`. Then the
gateway's own objects make copies, as they do when an instance has been chosen, and note the ends of
the originals. No copy is sent: what it costs itself is the time of a request, which no original
waits for.

Times are those of the fastest of many batches: on a busy machine, others only add to them.
"""

import asyncio
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from fairlead.decision import Decision, DecisionText
from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.routes.model import Route, RouteTarget, Shadow
from fairlead.runtime import process_tuning
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.compiled_build import is_compiled
from fairlead.runtime.event_loop import loop_factory
from fairlead_bench.gateway.routing_decision import frozen_heap
from fairlead_bench.results import ResultRow, load_goals
from fairlead_bench.routes.request_cost import BATCH, NamedRequests, run_cost_benchmark
from fairlead_gateway.http.connection import ClientConnection
from fairlead_gateway.http.listener import HttpRequest, ResponseWriter
from fairlead_gateway.proxy import shadow_traffic
from fairlead_gateway.proxy.gateway import Gateway
from fairlead_gateway.proxy.model_selection import ModelRequestParser
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_gateway.tenants.worker.api_keys import GatewaySecrets
from fairlead_gateway.tenants.worker.tenant_policy import TenantPolicies
from fairlead_gateway.upstream.engine_address import EngineAddress

NAME: Final = "shadow"
_BATCHES: Final = 200
_ALIAS: Final = Route("default", "alias", (RouteTarget("default/bench-model"),), names=("alias",))
_SHADOWED: Final = replace(_ALIAS, name="shadowed", names=("shadowed",), shadow=Shadow("default/other"))
_PARTLY: Final = replace(_ALIAS, name="partly", names=("partly",), shadow=Shadow("default/other", 10))
PARSED: Final = {
    "an alias: more than the model's name": _ALIAS,
    "an alias with a shadow for all conversations: more than the model's name": _SHADOWED,
    "an alias with a shadow for 10 % of the conversations: more than the model's name": _PARTLY,
}
COPY_MADE: Final = "the copy is made"
END_NOTED: Final = "the end of the original is noted"


def measure(seed: int) -> dict[str, float]:
    """Returns the microseconds of each part, in this process."""
    requests = NamedRequests(seed, PARSED.values(), _BATCHES)
    found = {
        part: requests.microseconds(route.name, has_session=False, is_first=True) for part, route in PARSED.items()
    }
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return found | runner.run(_measure(requests.fleet, requests.make(_SHADOWED.name)))


async def _measure(fleet: Fleet, requests: list[HttpRequest]) -> dict[str, float]:
    limits = replace(Limits(), shadow_copies=2 * BATCH, shadow_pairs=2 * BATCH)
    runtime = WorkerRuntime(SystemClock(), limits, asyncio.get_running_loop())
    secrets = GatewaySecrets(b"bench", EngineCredentials({}, runtime.now), None)
    gateway = Gateway(runtime, secrets, create_request_id=lambda: "0" * 16)
    gateway.update_fleet(fleet)
    best = {COPY_MADE: math.inf, END_NOTED: math.inf}
    try:
        for _ in range(_BATCHES):
            for part, seconds in (await _batch(gateway, requests)).items():
                best[part] = min(best[part], seconds)
    finally:
        gateway.close()
    return {part: seconds / BATCH * 1e6 for part, seconds in best.items()}


async def _batch(gateway: Gateway, requests: list[HttpRequest]) -> Mapping[str, float]:
    contexts = [await _context(gateway, request, str(number)) for number, request in enumerate(requests)]
    parser = ModelRequestParser(gateway.runtime.limits, TenantPolicies(b"bench"), cast(Any, None))
    copies = gateway.stages.create_shadow_traffic(parser, lambda: False)
    with frozen_heap():
        started = time.perf_counter()
        for context in contexts:
            copies.on_chosen(context)
        made = time.perf_counter()
    assert copies.running_count() == len(contexts)
    now = gateway.runtime.now()
    for context in contexts:
        result = context.result
        result.status, result.dispatched_at, result.first_at, result.last_at = 200, now, now + 0.1, now + 1.0
        result.output_tokens = 100
    with frozen_heap():
        ended = time.perf_counter()
        for context in contexts:
            copies.on_original_ended(context)
        noted = time.perf_counter()
    copies.close()
    while copies.running_count():  # noqa: ASYNC110 - tasks that never began end a turn later
        await asyncio.sleep(0)
    return {COPY_MADE: made - started, END_NOTED: noted - ended}


async def _context(gateway: Gateway, http_request: HttpRequest, name: str) -> RequestContext:
    """Returns a request whose first instance was just chosen."""
    request, route_request = await gateway.parse(http_request, name)
    response = ResponseWriter(ClientConnection(gateway.listener), None, name)
    context = RequestContext(http_request, response, name, request, route_request)
    (instance,) = gateway.stages.routers.fleet.instances[request.model_key]
    decision = Decision(instance.id, "only-one", DecisionText("alone"))
    context.address = EngineAddress(instance)
    context.choice = DecisionRecord(name, 0.0, request.model_key, decision, 1, 0.0)
    return context


def rows(costs: dict[str, float]) -> list[ResultRow]:
    wanted = load_goals(NAME)
    return [wanted.value(part, "µs", cost) for part, cost in costs.items()]


def main(arguments: Sequence[str]) -> int:
    module, adds = "fairlead_bench.routes.shadow_cost", "Processor time that a shadow adds to a request."
    return run_cost_benchmark(arguments, NAME, module, adds, rows)


if __name__ == "__main__":
    process_tuning.relax_gc()  # as a worker
    seed = int(sys.argv[1]) if sys.argv[1:] else 1
    print(json.dumps({"costs": measure(seed), "is_compiled": is_compiled(shadow_traffic.__file__)}))
