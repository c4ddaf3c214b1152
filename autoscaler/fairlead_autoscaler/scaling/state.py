"""What the core remembers between two looks. It is a value: a decision gives the next one and changes nothing.

``encode`` and ``decode`` carry it through JSON, so that a recorded window can be replayed from the state it began with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.scaling.blend import Blend
from fairlead_autoscaler.scaling.budget import Budget
from fairlead_autoscaler.scaling.learned import Lengths, Speed, Starts
from fairlead_autoscaler.scaling.load import Load
from fairlead_autoscaler.scaling.shapes import Histogram
from fairlead_autoscaler.scaling.split import Kept
from fairlead_autoscaler.scaling.trust import Trust
from fairlead_autoscaler.scaling.window import Window
from fairlead_autoscaler.scaling.zero import Silence


@dataclass(frozen=True, slots=True)
class PoolState:
    """Of a pool: when it was there last, how fast its engines are, how long they take to start, when it was lowered last, how many
    were started beside what is needed, how long waking takes by the level of sleep, and the numbers of replicas that were needed
    lately."""

    seen_at: float | None = None
    speed: Speed = field(default_factory=Speed)
    starts: Starts = field(default_factory=Starts)
    lowered_at: float | None = None
    hedged: int = 0
    wakes: Mapping[str, Starts] = field(default_factory=dict)
    rest: Window = field(default_factory=Window)


@dataclass(frozen=True, slots=True)
class GroupState:
    """Of the pools that serve the same: the margin, the windows of needs, of what the backlog adds and of the needs that groups share
    by (in replicas of the group's first pool), the level to which bursts come back, the share by which load rises above its level,
    when these were looked at, when there was less than what arrived took, the last need that was seen and how fast it rose then, per
    second; the mix of its pools that is followed, and what a replica of each is worth in those of the first."""

    budget: Budget = field(default_factory=Budget)
    window: Window = field(default_factory=Window)
    backlog: Window = field(default_factory=Window)
    shared: Window = field(default_factory=Window)
    bursts: float = 0.0
    swing: float | None = None
    past_at: float = 0.0
    short_at: float = 0.0
    need: float | None = None
    trend: float = 0.0
    blend: Blend = field(default_factory=Blend)
    kept: Kept = field(default_factory=Kept)
    worths: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Clock:
    """``now``: seconds since the first look, which only go on. ``told``: what the last observation said it was. ``calm_at``: until
    then nothing is lowered, because it began, or a gap lies behind."""

    told: float | None = None
    now: float = 0.0
    calm_at: float = 0.0
    blind_since: float | None = None
    open_seconds: float = 0.0
    open_requests: float = 0.0
    open_prompt: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """All of it."""

    clock: Clock = field(default_factory=Clock)
    trust: Trust = field(default_factory=Trust)
    load: Load = field(default_factory=Load)
    lengths: Lengths = field(default_factory=Lengths)
    silence: Silence = field(default_factory=Silence)
    pools: Mapping[str, PoolState] = field(default_factory=dict)
    groups: Mapping[str, GroupState] = field(default_factory=dict)
    shapes: Histogram | None = None


def encode(state: State) -> bytes:
    """``state`` as JSON."""
    return msgspec.json.encode(_plain(state))


def decode(data: bytes) -> State:
    """What ``encode`` wrote. Raises BadInput for anything else."""
    try:
        return msgspec.convert(msgspec.json.decode(data), State, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadInput(f"this is no state of the scaling core: {error}", field="state") from error


def _plain(state: State) -> Any:
    return msgspec.to_builtins(state)
