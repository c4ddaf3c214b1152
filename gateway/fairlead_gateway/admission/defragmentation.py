"""Defragmentation of KV memory: streams leave an instance so that a waiting request fits. Pure.

A request waits if its KV fits at no instance until its end, although the fleet has enough memory.
Then streams of one instance go on at others. That costs the computation of their prompts and of
what they have generated, and delays the streams there. So they leave only if the wait of all
requests behind the first one, in seconds, is worth more. The cheapest instance is chosen.

Only streams of the tier of the request or a lower one leave; the lowest leave first. An instance
gets streams only if it computes them at once. They fill it to `FILL_SHARE` at most, `FILL_STEPS`
from now.

Source: Llumnix (arXiv 2406.03243) moves streams to make room. It copies KV; here it is computed
again, so a price stands against the gain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.units import format_duration
from fairlead_gateway.admission.kv_capacity import SequenceForecast

FILL_SHARE: Final = 0.95
"""Share of its memory that moves may fill at an instance."""
FILL_STEPS: Final = (0, 8, 32)
WAITING_WEIGHT: Final = 8.0
"""A second of waiting for the first token, in seconds of pauses.

Why: a pause is one gap of many in a stream, and a wait is all of its time to the first token.
"""
MAX_WAIT_SECONDS: Final = 30.0
_PLACES: Final = 5
"""Instances in which room for a request, or for a stream, is looked for: those with most free
memory.
"""


@dataclass(frozen=True, slots=True)
class MovableStream:
    """A running stream that can go on elsewhere.

    - tokens: its KV: the prompt, and what was generated.
    - remaining_tokens: forecast of the tokens still to come.
    - tier: 0 is the highest, that of `Interactive`.
    """

    id: str
    tokens: float
    remaining_tokens: float
    tier: int = 0


@dataclass(frozen=True, slots=True)
class InstanceMemory:
    """The KV memory of an instance.

    - kv_tokens: its size, as far as it may be planned for.
    - sequences: all requests there that are known.
    - other_tokens: of requests of other processes.
    - free_sequences: how many streams it can begin; 0 if requests wait there or none may be sent.
    """

    id: str
    profile: EngineProfile
    kv_tokens: float
    sequences: Sequence[SequenceForecast]
    other_tokens: float = 0.0
    free_sequences: float = math.inf


class MovableStreams:
    """The streams that may leave their instances."""

    def __init__(self, by_instance: Mapping[str, Sequence[MovableStream]]) -> None:
        self._by_instance = by_instance

    def at(self, instance: str) -> Sequence[MovableStream]:
        """Returns the streams at an instance. Called for few instances, since it may take long."""
        return self._by_instance.get(instance, ())

    def may_go(self, stream: str, destination: str) -> bool:
        """Whether an instance may continue a stream."""
        del stream, destination
        return True


@dataclass(frozen=True, slots=True)
class MemoryWait:
    """Requests that wait because memory is missing for the first of them.

    - missing_tokens: of the first one, by instance. It goes to no other instance.
    - tier: of the first one.
    """

    count: int = 0
    missing_tokens: Mapping[str, float] = field(default_factory=dict)
    tier: int = 0


@dataclass(frozen=True, slots=True)
class MemoryMove:
    """A stream that leaves an instance for another one.

    gain_seconds, price_seconds: of delay, over all streams; of moves that make room together, each
    has its share of the gain.
    """

    stream: str
    source: str
    destination: str
    gain_seconds: float
    price_seconds: float

    @property
    def reason(self) -> str:
        """The reason, as text."""
        gain, price = format_duration(self.gain_seconds), format_duration(self.price_seconds)
        return f"it makes room for a request that waits: {gain} of delay are saved, and the move costs {price}"


def plan_moves(
    instances: Sequence[InstanceMemory], waiting: MemoryWait, budget: int, movable: MovableStreams
) -> list[MemoryMove]:
    """Returns the cheapest moves that let the first waiting request begin; none if none pays.

    budget: moves that may begin now.
    """
    places = [_Place(instance) for instance in instances]
    full = [place for place in places if place.instance.id in waiting.missing_tokens]
    wait_seconds = MAX_WAIT_SECONDS
    best: _Leaving | None = None
    for place in sorted(full, key=_Place.free_tokens)[-_PLACES:]:
        missing = waiting.missing_tokens[place.instance.id]
        wait_seconds = min(wait_seconds, place.seconds_until_free(missing))
        candidates = [stream for stream in movable.at(place.instance.id) if stream.tier >= waiting.tier]
        found = _leaving(place, places, missing, budget, candidates, movable)
        if found is not None and (best is None or found.price_seconds < best.price_seconds):
            best = found
    gain = WAITING_WEIGHT * waiting.count * wait_seconds
    if best is None or gain <= best.price_seconds:
        return []
    share = gain / len(best.streams)
    return [
        MemoryMove(stream.id, best.source, to.instance.id, share, to.prefill_seconds(stream.tokens))
        for stream, to in best.streams
    ]


class _Place:
    """An instance while a plan is made. coming, taken: streams that the plan sends there, and their
    tokens.
    """

    __slots__ = ("_now_tokens", "_peak_tokens", "_remaining", "coming", "instance", "taken")

    def __init__(self, instance: InstanceMemory) -> None:
        self.instance = instance
        self.coming, self.taken = 0, 0.0
        self._remaining = sum([sequence.remaining_tokens for sequence in instance.sequences])
        self._now_tokens = sum([sequence.now_tokens for sequence in instance.sequences])
        self._peak_tokens = instance.other_tokens + max([_tokens_after(instance, steps) for steps in FILL_STEPS])

    def free_tokens(self, share: float = 1.0) -> float:
        """Returns the tokens that are free in this share of the memory, for the next steps."""
        return share * self.instance.kv_tokens - self._peak_tokens - self.taken

    def takes(self, stream: MovableStream) -> bool:
        """Returns whether a stream fits here."""
        grown = min(FILL_STEPS[-1], stream.remaining_tokens)
        has_place = self.coming < self.instance.free_sequences
        return has_place and stream.tokens + grown <= self.free_tokens(FILL_SHARE)

    def prefill_seconds(self, tokens: float) -> float:
        """Returns the delay of all streams here, and of one more that is computed here."""
        return self.instance.profile.prefill_time(tokens) * (1 + len(self.instance.sequences))

    def seconds_until_free(self, tokens: float) -> float:
        """Returns when streams that end leave so much memory; growing ones need a part of it."""
        streams = len(self.instance.sequences)
        if not streams:  # all memory is that of other processes, whose ends are not known
            return MAX_WAIT_SECONDS
        mean, rest = self._now_tokens / streams, max(1.0, self._remaining / streams)
        net = streams * max(0.1, mean / rest - 1.0)
        step = self.instance.profile.step_time(computed=streams, sequences=streams, resident=int(self._now_tokens))
        return min(MAX_WAIT_SECONDS, tokens / net * step)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Streams that leave an instance together, each with its destination."""

    source: str
    streams: Sequence[tuple[MovableStream, _Place]]
    price_seconds: float


def _leaving(
    place: _Place,
    places: Sequence[_Place],
    missing: float,
    budget: int,
    candidates: list[MovableStream],
    movable: MovableStreams,
) -> _Leaving | None:
    """Returns candidates whose leaving makes room for a request, each with its destination.

    None if there are not enough, or the budget is too small.
    """
    leaving: list[tuple[MovableStream, _Place]] = []
    for other in places:
        other.coming, other.taken = 0, 0.0
    while missing > 0.0 and candidates and len(leaving) < budget:
        lowest = max([stream.tier for stream in candidates])
        same = [stream for stream in candidates if stream.tier == lowest]
        enough = [stream for stream in same if stream.tokens >= missing]
        stream = min(enough, key=_tokens) if enough else max(same, key=_tokens)
        candidates.remove(stream)
        takers = [other for other in places if other is not place and other.takes(stream)]
        roomiest = nlargest(_PLACES, takers, key=_Place.free_tokens)
        to = next((other for other in roomiest if movable.may_go(stream.id, other.instance.id)), None)
        if to is not None:
            to.coming += 1
            to.taken += stream.tokens
            leaving.append((stream, to))
            missing -= stream.tokens
    if not leaving or missing > 0.0:
        return None
    return _Leaving(place.instance.id, leaving, sum([to.prefill_seconds(stream.tokens) for stream, to in leaving]))


def _tokens_after(instance: InstanceMemory, steps: int) -> float:
    """Returns the KV of all sequences in some steps; those that have ended by then have none."""
    return sum([one.now_tokens + steps for one in instance.sequences if one.remaining_tokens >= steps])


def _tokens(stream: MovableStream) -> float:
    return stream.tokens
