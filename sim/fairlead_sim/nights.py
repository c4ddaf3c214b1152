"""Plays fleets in trouble (``trouble``) under a guard (``guard``) and judges them: safety while it lasts, liveness after.

python -m fairlead_sim.nights SEED        one of them again, with what happens in it and what was found
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fairlead.errors import FairleadError
from fairlead_gateway.routing import HOLDING
from fairlead_gateway.routing.ledger import InstanceLoad
from fairlead_sim.course import CUT, Course
from fairlead_sim.figures import TARGET_SECONDS, within
from fairlead_sim.fleet import OneRouter
from fairlead_sim.gateways import Gateways
from fairlead_sim.guard import Count, Guard, Lost
from fairlead_sim.knowledge import Knowledge
from fairlead_sim.outside import Outside, Sharing
from fairlead_sim.script import play
from fairlead_sim.seams import router
from fairlead_sim.served import Served
from fairlead_sim.traces import TRACE_BLOCK_TOKENS
from fairlead_sim.trial import Seam, Trial
from fairlead_sim.trouble import GATEWAYS, RECOVERY_SECONDS, SEAM, TROUBLE_SECONDS, Scene, drawn
from fairlead_sim.weather import Weather

REPLAY: Final = ".venv/bin/python scripts/nightly_fleet.py --replay {}"
LIVE_SHARE: Final = 0.9
"""Of the first tokens of those that arrive when all has been well for long enough, by ``TARGET_SECONDS``."""


@dataclass(frozen=True, slots=True)
class Night:
    """One seed: what was found ``broken``, and how much happened."""

    seed: int
    broken: tuple[str, ...]
    requests: int
    cut: int
    retried: int
    nobody: int
    looks: int
    attainment_after: float

    def told(self) -> str:
        """What was found, and the one command that plays it again."""
        lines = [f"seed {self.seed}: {len(self.broken)} findings", *[f"  {what}" for what in self.broken]]
        return "\n".join([*lines, f"  {REPLAY.format(self.seed)}"])


def night(seed: int) -> Night:
    """Play it."""
    return played(drawn(seed))


def played(scene: Scene, core: Callable[..., Any] | None = None) -> Night:
    """``core`` instead of ours behind the seam, to see that the guard sees."""
    prompts = (trial := _trial(scene, core)).prompts()
    front = _gateways(scene) if scene.front == GATEWAYS else trial.front(prompts)
    guard = Guard(
        front,
        scene.names,
        counts=partial(_counts, front),
        holds=scene.preset in HOLDING,
        reached=partial(_reached, front),
        last=scene.traffic[-1].arrival,
    )
    course = Course(
        guard, scene.names, scene.profile, block_tokens=TRACE_BLOCK_TOKENS, events=scene.shared, prompts=prompts
    )
    play(scene.script, course)
    _play_on_gateways(scene, front, trial, course)
    try:
        served = course.serve(scene.traffic)
    except (Lost, FairleadError, LookupError, AssertionError, ArithmeticError, TypeError, ValueError) as error:
        return Night(scene.seed, (*guard.broken, f"{type(error).__name__}: {error}"), 0, 0, 0, 0, guard.looks, 0.0)
    guard.end()
    after = [one for one in served if one.arrival >= TROUBLE_SECONDS + RECOVERY_SECONDS]
    attainment = within(after, TARGET_SECONDS)
    broken = [*guard.broken, *_unwhole(scene, served, guard.unserved)]
    if scene.preset == "dual-hash" and attainment < LIVE_SHARE:
        broken.append(f"{attainment:.3f} of {len(after)} first tokens in time, long after all is well")
    return Night(
        seed=scene.seed,
        broken=tuple(broken),
        requests=len(served),
        cut=sum([one.error == CUT for one in served]),
        retried=sum([one.retries > 0 for one in served]),
        nobody=len(guard.unserved),
        looks=guard.looks,
        attainment_after=attainment,
    )


def _trial(scene: Scene, core: Callable[..., Any] | None) -> Trial:
    seam = None
    if scene.front == SEAM:
        sharing = Sharing(scene.late_seconds, scene.late_seconds) if scene.shared else None
        ours = core or (lambda info, preset, seed: router(info, preset=preset, seed=seed))
        seam = Seam(ours, scene.gateways, sharing, Weather(scene.spells, scene.seed))
    return Trial(scene.preset, profile=scene.profile, engines=scene.engines, seed=scene.seed, seam=seam)


def _gateways(scene: Scene) -> Gateways:
    told, late = scene.shared, max(0.01, scene.late_seconds)
    front = Gateways(
        scene.gateways,
        scene.all_names,
        scene.profile,
        knowledge=Knowledge(sent=told, loads=told, hot=told, index=told, told_seconds=late, index_seconds=late),
        objectives=Trial().objectives,
        secret=f"secret {scene.seed}".encode(),
        seed=scene.seed,
        block_tokens=TRACE_BLOCK_TOKENS,
        weather=Weather(scene.spells, scene.seed),
    )
    front.live = scene.names
    front.members(scene.names, 0.0)
    return front


def _play_on_gateways(scene: Scene, front: OneRouter | Outside | Gateways, trial: Trial, course: Course) -> None:
    for one in scene.partitions:
        course.later(one.at, partial(_part, front, one.gateway, one.without))
    for kill in scene.kills:
        course.later(kill.at, partial(_kill, front, kill.gateway, trial))


def _part(front: OneRouter | Outside | Gateways, gateway: int, without: frozenset[str], now: float) -> None:
    if isinstance(front, OneRouter):
        front.unreachable(without, now)
    else:
        front.unreachable(gateway, without, now)


def _kill(front: OneRouter | Outside | Gateways, gateway: int, trial: Trial, now: float) -> None:
    if isinstance(front, Gateways):
        front.killed(gateway, now)
    elif isinstance(front, Outside):
        assert trial.seam is not None
        front.killed(gateway, trial.core(trial.seam), now)


def _counts(front: OneRouter | Outside | Gateways) -> Iterable[Count]:
    if isinstance(front, Outside):
        for gateway in front.gateways:
            for name, (inflight, waiting, prefill, tokens) in gateway.counters.items():
                yield name, round(inflight), round(waiting), prefill, tokens
    else:
        for loads in front.loads() if isinstance(front, Gateways) else [front.loads()]:
            for name, load in loads.items():
                yield (name, *_numbers(load))


def _numbers(load: InstanceLoad) -> tuple[int, int, float, float]:
    return load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens


def _reached(front: OneRouter | Outside | Gateways, request: str, live: Collection[str]) -> Collection[str]:
    cut = front.cut_of(request)
    return [name for name in live if name not in cut]


def _unwhole(scene: Scene, served: Sequence[Served], unserved: Collection[str]) -> list[str]:
    """What became of requests that may not become of them."""
    found = []
    for asked, one in zip(scene.traffic, served, strict=True):
        if one.error is not None:
            if one.arrival > TROUBLE_SECONDS:
                found.append(f"{one.id} fails although all is well: {one.error}")
            elif one.error != CUT and one.id not in unserved:
                found.append(f"{one.id} fails: {one.error}")
            continue
        times = one.times
        if one.output_tokens != asked.output_tokens or len(times) != asked.output_tokens:
            found.append(f"{one.id} has {len(times)} tokens of {asked.output_tokens}")
        elif list(times) != sorted(times) or times[0] < one.arrival:
            found.append(f"{one.id} has tokens out of order")
    return found[:10]
