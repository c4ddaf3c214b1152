"""Fleets of several kinds of accelerator behind the gateway's router, engine by engine.

The router does not know the lengths of answers. Engines are token-level ones with their caches; the
requests share nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, Model, SloTargets
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.fleet.fleet_options import FleetOptions
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.results import without_warmup
from fairlead_sim.fleet.simulation import FleetSimulation
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest

BLOCK_TOKENS = 128
_SECRET = b"mix"


class UnknownLengthRouter(SingleGateway):
    """As of clients that do not say how long an answer may be."""

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Routes without the length of the answer."""
        return super().route(replace(request, output_tokens=0), now)


def slo_attainment(
    fleet: Mapping[str, tuple[EngineProfile, int]],
    requests: Sequence[TraceRequest],
    objectives: SloTargets,
    *,
    apart: bool,
    seed: int,
) -> float:
    """Returns the share within the SLO of ``fleet`` (profile and replicas by accelerator).

    apart: each accelerator is a pool of its own, as in a manifest. Otherwise all are one pool, and
    the router does not go by shape.
    """
    ones = [
        Instance(f"{name}-{number}/0/0", NAMESPACE, MODEL, name if apart else "all", "", profile=profile)
        for name, (profile, count) in sorted(fleet.items())
        for number in range(count)
    ]
    model = Model(NAMESPACE, MODEL, objectives)
    router = ModelRouter(secret=_SECRET, seed=seed)
    router.update(model, ones)
    prompts = TracePromptCache(BLOCK_TOKENS, secret=_SECRET, seed=model.key.encode())
    profiles = {one.id: one.profile for one in ones if one.profile is not None}
    first = next(iter(profiles.values()))
    front = UnknownLengthRouter(router, prompts.prefix_chain, {}, model, first)
    options = FleetOptions(list(profiles), first, BLOCK_TOKENS, profiles)
    course = FleetSimulation(front, options, prompts=prompts)
    served = without_warmup(course.run(requests))
    return sum([_meets_slo(one, objectives) for one in served]) / len(served)


def _meets_slo(one: RequestResult, objectives: SloTargets) -> bool:
    limit, itl = objectives.ttft_limit_seconds(one.prompt_tokens), objectives.itl_seconds
    if one.error is not None or one.ttft_seconds is None:
        return False
    late = limit is not None and one.ttft_seconds > limit
    return not late and (itl is None or (one.tpot_seconds or 0.0) <= itl)
