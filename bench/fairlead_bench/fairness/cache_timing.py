"""Two attacks on caches, in simulated time: guessing prompts of others, and aiming at one engine.

**Timing**: a victim sends prompts, and others send traffic. An attacker then sends 1,000 prompts,
of which the victim sent half. It ranks them by TTFT, and by the cached tokens that responses state.
AUC is the chance that one of the victim's ranks before another.

**Aiming**: an attacker who knows the algorithm and a secret looks for prompts that routing sends to
one engine. They are sent to a gateway with that secret, and to one with another.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from xxhash import xxh3_64_intdigest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Model, SloTargets
from fairlead.tenants.model import CacheSharing, Tenant
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.routing import ModelRouter, RouteRequest
from fairlead_gateway.tenants.worker.tenant_policy import scope_of
from fairlead_sim.fleet.simulation import FleetOptions
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, RoutingOptions, instances_of, simulate
from fairlead_sim.workload.trace_prompts import trace_chain
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

_NAME = "fairness"
PROBES: Final = 1_000
AIMED_PROMPTS: Final = 2_000
_ENGINES: Final = [f"e-{number}" for number in range(8)]
_PROFILE: Final = builtin_profile("h100-llama8b")
_PROMPT_BLOCKS: Final = 3
_PROBE_SECONDS: Final = 0.05
_BACKGROUND_RATE: Final = 8.0
_SECRET: Final = b"the secret of the installation"
_VICTIM, _ATTACKER, _OTHERS = "victim", "attacker", "others"


@dataclass(frozen=True, slots=True)
class AttackResult:
    """The AUC of an attacker by what it observes; 0.5 is a guess."""

    by_time: float
    by_cached_tokens: float


def timing_attack(sharing: CacheSharing, seed: int, probes: int = PROBES) -> AttackResult:
    """Returns the result of the first attack, with all tenants sharing caches in this way."""
    draw = random.Random(seed)
    prompts = [tuple(draw.getrandbits(63) for _ in range(_PROMPT_BLOCKS)) for _ in range(probes)]
    sent = set(draw.sample(range(probes), probes // 2))
    requests = [_request(_VICTIM, index, index * _PROBE_SECONDS, prompts[index]) for index in sorted(sent)]
    first_probe = probes * _PROBE_SECONDS
    order = draw.sample(range(probes), probes)
    requests += [
        _request(_ATTACKER, index, first_probe + place * _PROBE_SECONDS, prompts[index])
        for place, index in enumerate(order)
    ]
    requests += _background(draw, 2 * first_probe)
    salted = [_salted(request, sharing) for request in sorted(requests, key=_arrival)]
    fleet = FleetOptions(_ENGINES, _PROFILE, 64)
    results = simulate(salted, fleet, RoutingOptions(SloTargets(ttft_seconds=5.0), _SECRET))
    found = {result.id: result for result in results if result.id.startswith(_ATTACKER)}
    shown = [found[f"{_ATTACKER}/{index}"] for index in range(probes)]
    times = [-(result.ttft_seconds or 0.0) for result in shown]
    cached = [float(result.cached_tokens) for result in shown]
    return AttackResult(area_under_curve(times, sent), area_under_curve(cached, sent))


def _request(tenant: str, number: int, at: float, blocks: tuple[int, ...]) -> TraceRequest:
    tokens = len(blocks) * TRACE_BLOCK_TOKENS
    return TraceRequest(f"{tenant}/{number}", at, tokens, 16, blocks, None, tenant)


def _background(draw: random.Random, seconds: float) -> list[TraceRequest]:
    made: list[TraceRequest] = []
    at = draw.expovariate(_BACKGROUND_RATE)
    while at < seconds:
        blocks = tuple(draw.getrandbits(63) for _ in range(draw.randint(1, 4)))
        made.append(_request(_OTHERS, len(made), at, blocks))
        at += draw.expovariate(_BACKGROUND_RATE)
    return made


def _salted(request: TraceRequest, sharing: CacheSharing) -> TraceRequest:
    """Returns the request with blocks as engine and router see them under the tenant's salt."""
    scope = scope_of(Tenant(request.tenant or "", cache_sharing=sharing), _SECRET)
    if scope is None:
        return request
    key = xxh3_64_intdigest(scope.salt.encode())
    blocks = tuple(xxh3_64_intdigest(block.to_bytes(8, "little"), key) for block in request.blocks)
    return replace(request, blocks=blocks)


def _arrival(request: TraceRequest) -> float:
    return request.arrival


def area_under_curve(scores: Sequence[float], positive: set[int]) -> float:
    """Returns the chance that a positive scores higher than another; ties count half."""
    below: Counter[float] = Counter(score for index, score in enumerate(scores) if index not in positive)
    others = sum(below.values())
    total, passed = 0.0, 0
    of_positive: Counter[float] = Counter(scores[index] for index in positive)
    for score in sorted({*below, *of_positive}):
        total += of_positive[score] * (passed + below[score] / 2)
        passed += below[score]
    return total / (len(positive) * others)


def aimed_load(knows_secret: bool, seed: int, prompts: int = AIMED_PROMPTS) -> float:
    """Returns the largest load of an engine ÷ the mean, by prompts that were aimed at one.

    knows_secret: the gateway has the secret for which the attacker chose the prompts.
    """
    draw = random.Random(seed)
    guessed = b"a secret that became known"
    secret = guessed if knows_secret else _SECRET
    model, target = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=5.0)), _ENGINES[0]
    routers = {name: ModelRouter(secret=name, seed=0) for name in (guessed, secret)}
    for router in routers.values():
        router.update(model, instances_of(_ENGINES, _PROFILE))
    counts: Counter[str] = Counter()
    for number in range(100 * prompts):
        blocks = tuple(draw.getrandbits(63) for _ in range(_PROMPT_BLOCKS))
        tokens = _PROMPT_BLOCKS * TRACE_BLOCK_TOKENS

        def choice(name: bytes, number: int = number, blocks: tuple[int, ...] = blocks, tokens: int = tokens) -> str:
            chain = trace_chain(blocks, tokens, secret=name, seed=model.key.encode())
            return (
                routers[name].choose_instance(RouteRequest(f"r{number}", chain, tokens, 16), float(number)).chosen or ""
            )

        if choice(guessed) == target:
            counts[choice(secret)] += 1
        if sum(counts.values()) == prompts:
            break
    return max(counts.values()) / (prompts / len(_ENGINES))


def rows(goals: Goals) -> list[ResultRow]:
    """Returns the rows of both attacks."""
    made: list[ResultRow] = []
    for name, sharing in (("isolated", CacheSharing.TENANT), ("shared caches", CacheSharing.CLUSTER)):
        found = timing_attack(sharing, seed=7)
        for channel, value in (("time", found.by_time), ("cached tokens", found.by_cached_tokens)):
            made.append(goals.value(f"timing attack, AUC by {channel}: {name}", "", value))
    for name, knows_secret in (("secret unknown", False), ("secret known", True)):
        made.append(goals.value(f"aimed prompts, largest ÷ mean load: {name}", "", aimed_load(knows_secret, seed=7)))
    return made


def main(arguments: list[str]) -> int:
    given = parse_options(_NAME, "Attacks on the caches of tenants, in simulated time.", arguments)
    return write_results(_NAME, rows(load_goals(_NAME)), seed=7, file=given.out)
