"""Fleets in trouble, drawn from seeds: what `make nightly` plays ten thousand of (docs/reference/faults.md).

A seed draws a fleet, what stands before it, its traffic, and what happens in the first ``TROUBLE_SECONDS``: faults of the fault
matrix that a simulator can have. Then all is well again (lost engines are replaced, slow ones are fast, everybody reaches
everybody), and the traffic goes on: after ``RECOVERY_SECONDS`` the fleet must serve as if nothing had been.

| fault | here |
|---|---|
| engines killed, also all at once, and started anew under their names | ``lose``, ``join`` |
| engines drained, others added | ``drain``, ``join`` |
| an engine ten times slower, or hanging | ``slow`` by 10, by 50 |
| a gateway does not reach some engines; links cut one by one and mended in another order | ``partitions`` |
| a herd: three tenths of the requests of those seconds arrive within one | ``traffic`` |
| a gateway killed in the middle of its answers | ``kills`` |
| what engines and gateways tell is lost, comes twice, late or out of order; Redis away | ``spells`` |
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from fairlead.profile import EngineProfile, preset
from fairlead_gateway.routing import PRESETS
from fairlead_sim.script import Happening, What
from fairlead_sim.traces import TraceRequest, at_rate
from fairlead_sim.traffic import FAMILIES
from fairlead_sim.weather import Spell

TROUBLE_SECONDS: Final = 45.0
RECOVERY_SECONDS: Final = 60.0
WATCHED_SECONDS: Final = 20.0
_PROFILES: Final = ("h100-llama8b", "a100-qwen7b")
_RATE_OF_ONE: Final = {"h100-llama8b": 2.4, "a100-qwen7b": 1.0}
"""Requests a second that one engine carries without finding anything in its cache."""
ONE: Final = "one"
SEAM: Final = "seam"
GATEWAYS: Final = "gateways"


@dataclass(frozen=True, slots=True)
class Partition:
    """At a moment a gateway reaches all engines but these."""

    at: float
    gateway: int
    without: frozenset[str]


@dataclass(frozen=True, slots=True)
class Kill:
    """At a moment a gateway is killed, and another takes its place."""

    at: float
    gateway: int


@dataclass(frozen=True, slots=True)
class Scene:
    """``front``: one router that sees all (``one``), cores of the seam as an outside tool drives them (``seam``), or the production's
    gateways with what they tell one another (``gateways``). ``shared`` False: gateways and engines tell nothing."""

    seed: int
    front: str
    preset: str
    gateways: int
    engines: int
    profile: EngineProfile
    shared: bool
    late_seconds: float
    traffic: tuple[TraceRequest, ...]
    script: tuple[Happening, ...]
    partitions: tuple[Partition, ...]
    kills: tuple[Kill, ...]
    spells: tuple[Spell, ...]

    @property
    def names(self) -> list[str]:
        """Of the engines of the beginning."""
        return [engine(number) for number in range(self.engines)]

    @property
    def all_names(self) -> list[str]:
        """Also of those that come."""
        return list(dict.fromkeys([*self.names, *[one.engine for one in self.script]]))

    def described(self) -> str:
        """In one line."""
        faults = [
            *[(one.at, f"{one.what} {one.engine.split('/')[0]}") for one in self.script],
            *[(one.at, f"gateway {one.gateway} without {len(one.without)}") for one in self.partitions],
            *[(one.at, f"gateway {one.gateway} killed") for one in self.kills],
            *[(one.begin, "spell") for one in self.spells],
        ]
        told = ", ".join([f"{at:.1f} {what}" for at, what in sorted(faults)])
        return (
            f"{self.preset} as {self.front}, {self.gateways} gateways, {self.engines} × {self.profile.name}, "
            f"{len(self.traffic)} requests; {told}"
        )


def engine(number: int) -> str:
    """An engine's name."""
    return f"sim-{number}/0/0"


def drawn(seed: int) -> Scene:
    """Equal seeds are equal scenes."""
    draw = Random(f"trouble {seed}")
    front = draw.choice([ONE, ONE, SEAM, SEAM, GATEWAYS])  # the last takes five times as long
    rule = "dual-hash" if front == GATEWAYS or draw.random() < 0.5 else draw.choice(list(PRESETS))
    gateways = 1 if front == ONE else draw.randint(1, 4)
    engines = draw.randint(2, 6)
    name = draw.choice(_PROFILES)
    names = [engine(number) for number in range(engines)]
    script = _script(draw, names)
    partitions = _partitions(draw, names, gateways)
    return Scene(
        seed=seed,
        front=front,
        preset=rule,
        gateways=gateways,
        engines=engines,
        profile=_profile(draw, name),
        shared=draw.random() < 0.8,
        late_seconds=draw.choice([0.0, 0.05, 0.5]),
        traffic=_traffic(draw, seed, _RATE_OF_ONE[name] * engines * draw.uniform(0.2, 0.6)),
        script=script,
        partitions=partitions,
        kills=() if front == ONE else _kills(draw, gateways),
        spells=_spells(draw),
    )


def _traffic(draw: Random, seed: int, rate: float) -> tuple[TraceRequest, ...]:
    count = int(rate * (TROUBLE_SECONDS + RECOVERY_SECONDS + WATCHED_SECONDS)) + 2
    requests = at_rate(FAMILIES[draw.choice(list(FAMILIES))](count, seed=seed), rate)
    if draw.random() < 0.3:
        herd = _moment(draw)
        requests = [
            replace(one, arrival=herd + draw.random()) if one.arrival < TROUBLE_SECONDS and draw.random() < 0.3 else one
            for one in requests
        ]
        requests.sort(key=lambda one: one.arrival)
    return tuple(requests)


def _profile(draw: Random, name: str) -> EngineProfile:
    """Some with half the memory, some with few sequences at once."""
    usual = preset(name)
    return replace(
        usual,
        kv_tokens=usual.kv_tokens // draw.choice([1, 1, 2]),
        max_sequences=draw.choice([usual.max_sequences, usual.max_sequences, 32]),
    )


def _moment(draw: Random) -> float:
    return draw.uniform(2.0, TROUBLE_SECONDS - 1.0)


def _script(draw: Random, names: Sequence[str]) -> tuple[Happening, ...]:
    found: list[Happening] = []
    if draw.random() < 0.05:  # all at once
        at = _moment(draw)
        found += [Happening(at, What.LOSE, name) for name in names]
    lost: list[str] = list(names) if found else []
    for name in names:
        if name not in lost and draw.random() < 0.35:
            lost.append(name)
            found.append(Happening(_moment(draw), draw.choice([What.LOSE, What.LOSE, What.DRAIN]), name))
        elif draw.random() < 0.3:
            at = _moment(draw)
            found.append(Happening(at, What.SLOW, name, draw.choice([3.0, 10.0, 50.0])))
            found.append(Happening(draw.uniform(at, TROUBLE_SECONDS), What.SLOW, name, 1.0))
    begun = {one.engine: one for one in found}
    for number, name in enumerate(lost):
        gone = begun[name]
        again = name if gone.what is What.LOSE and draw.random() < 0.6 else engine(len(names) + number)
        at = gone.at + draw.choice([0.0, draw.uniform(0.0, 1.0), draw.uniform(0.0, 20.0)])
        found.append(Happening(min(at, TROUBLE_SECONDS), What.JOIN, again))
    return tuple(sorted(found, key=lambda one: one.at))


def _partitions(draw: Random, names: Sequence[str], gateways: int) -> tuple[Partition, ...]:
    """Links of one gateway, cut one by one and mended in another order; for some gateways, at some moment."""
    found: list[Partition] = []
    for gateway in range(gateways):
        if draw.random() >= 0.25:
            continue
        cut = draw.sample(names, draw.randint(1, len(names)))
        moments = sorted([_moment(draw) for _ in range(2 * len(cut))])
        gone: set[str] = set()
        for at, name in zip(moments, [*cut, *draw.sample(cut, len(cut))], strict=True):
            gone ^= {name}
            found.append(Partition(at, gateway, frozenset(gone)))
    return tuple(found)


def _kills(draw: Random, gateways: int) -> tuple[Kill, ...]:
    return tuple([Kill(_moment(draw), gateway) for gateway in range(gateways) if draw.random() < 0.3])


def _spells(draw: Random) -> tuple[Spell, ...]:
    found = []
    for _ in range(draw.choice([0, 1, 1, 2])):
        begin = _moment(draw)
        end = draw.uniform(begin, TROUBLE_SECONDS)
        if draw.random() < 0.3:
            found.append(Spell(begin, end, lost=1.0))
        else:
            found.append(Spell(begin, end, draw.uniform(0.0, 0.3), draw.uniform(0.0, 0.5), draw.uniform(0.0, 5.0)))
    return tuple(found)
