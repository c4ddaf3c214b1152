"""All engines of a gateway, learned from the rows of its workers: which spans belong to which kind of engine, and what comes of them.

Instances of one pool are one kind: the same accelerator, image and settings. Each kind has one fit; an instance that is slower than
its kind (a hot device, a noisy neighbour) has a factor of its own on top, from what its spans took against what the kind's
profile says, and against what the spans of the kind's middle instance did: what all of them take longer is the profile's to say.
Otherwise the two drive one another on, since a fit of relative errors lies a little low where times scatter.

Rows of several workers are put in order before they are used, which takes waiting for the latest: ``learn_settle_seconds``. A leg
of a hand-off tells nothing here: where KV comes from elsewhere, a first token says little of computing.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, NamedTuple

from fairlead.fleet import Fleet, Instance, Role
from fairlead.limits import Limits
from fairlead.median import median
from fairlead.profile import EngineProfile, preset
from fairlead_gateway.learning.fit import ENOUGH_SPANS, ProfileFit
from fairlead_gateway.learning.rows import Kind, Row
from fairlead_gateway.learning.spans import EngineWatch, Span

SETTLE_EVERY_SECONDS: Final = 10.0
WORTH_TELLING: Final = 0.02
"""A profile by which a thousand tokens, or a step of decoding, take so much longer or shorter is told to the workers."""
PACE: Final = 0.05
PACE_MOST: Final = 3.0
PACE_ENOUGH: Final = 40
_PROBE_TOKENS: Final = 1_000.0


class Learned(NamedTuple):
    """What is known of one instance's engine. ``error``: how far single predictions are off, as a share; None before there are any.
    ``spans``: how many observations it rests on; below ``ENOUGH_SPANS`` the prior stands."""

    profile: EngineProfile
    spans: float
    error: float | None
    pace: float

    @property
    def stands(self) -> bool:
        """Whether it is learned, and not only assumed."""
        return self.spans >= ENOUGH_SPANS


@dataclass(slots=True)
class _Place:
    kind: str
    watch: EngineWatch
    pace: float = 1.0  # seconds it takes for each that its kind's profile says
    seen: int = 0


class Pupil:
    """Times are monotonic seconds. ``profiles`` is what workers should route by."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._fits: dict[str, ProfileFit] = {}
        self._places: dict[str, _Place] = {}
        self._kinds: Counter[str] = Counter()
        self._usual: dict[str, float] = {}  # the pace of a kind's middle instance
        self._where: dict[str, _Place] = {}
        self._rows: list[tuple[float, int, Row]] = []
        self._order = count()
        self._settled = 0.0
        self._told: dict[str, EngineProfile] = {}
        self.dropped = 0

    def apply(self, fleet: Fleet) -> None:
        """Take over who is there. What was learned of a kind stays as long as it has an instance."""
        found: dict[str, Instance] = {
            one.id: one
            for instances in fleet.instances.values()
            for one in instances
            if one.role is Role.SERVE and one.transfer is None
        }
        for gone in self._places.keys() - found.keys():
            del self._places[gone]
            self._told.pop(gone, None)
        for name, one in found.items():
            kind = f"{one.namespace}/{one.model}/{one.pool}"
            prior = one.profile or preset("h100-llama8b")
            fit = self._fits.get(kind)
            if fit is None or fit.prior != prior:
                self._fits[kind] = ProfileFit(prior)
            if name not in self._places:
                self._places[name] = _Place(kind, EngineWatch(prior.step_tokens))
        self._kinds = Counter(place.kind for place in self._places.values())
        self._fits = {kind: fit for kind, fit in self._fits.items() if kind in self._kinds}

    def heard(self, rows: Iterable[Row], dropped: int) -> None:
        """A worker tells."""
        self.dropped += dropped
        for row in rows:
            if len(self._rows) >= self._limits.learn_rows_waiting:
                self.dropped += 1
                continue
            heapq.heappush(self._rows, (row.at, next(self._order), row))

    def elsewhere(self, instance: str, tokens: float, now: float) -> None:
        """Another gateway has sent a prompt to an instance; how much of it is cached there is not told."""
        place = self._places.get(instance)
        if place is not None:
            place.watch.elsewhere(now, self._fits[place.kind].profile().prefill(tokens) * self._pace(place))

    def step(self, now: float) -> Mapping[str, EngineProfile]:
        """Learn from the rows that are old enough to be in order; the profiles, by instance, that changed enough to be told."""
        until = now - self._limits.learn_settle_seconds
        while self._rows and self._rows[0][0] <= until:
            self._take(heapq.heappop(self._rows)[2])
        if now - self._settled < SETTLE_EVERY_SECONDS:
            return {}
        self._settled = now
        self._compare()
        for fit in self._fits.values():
            fit.settle()
        changed = {}
        for name in self._places:
            known = self.look(name)
            if known is None or not known.stands:
                continue
            before = self._told.get(name)
            if before is None or _differ(before, known.profile):
                changed[name] = self._told[name] = known.profile
        return changed

    def told(self) -> Mapping[str, EngineProfile]:
        """All that was told: for a worker that is new."""
        return self._told

    def look(self, instance: str) -> Learned | None:
        """What is known of one; None where nothing is learned there."""
        place = self._places.get(instance)
        if place is None:
            return None
        fit = self._fits[place.kind]
        pace = self._pace(place)
        return Learned(fit.profile().faster(1.0 / pace), fit.spans, fit.error, pace)

    def _take(self, row: Row) -> None:
        if row.kind == Kind.SENT:
            place = self._places.get(row.instance)
            if place is None:
                return
            if len(self._where) >= self._limits.learn_flights:
                first = next(iter(self._where))
                self._where.pop(first).watch.ended(first, row.at)
            self._where[row.request] = place
            place.watch.dispatched(row.request, row.at, row.tokens, row.cached)
            return
        place = self._where.get(row.request)
        if place is None:
            return
        if row.kind == Kind.FIRST:
            place.watch.first_token(row.request, row.at)
            return
        del self._where[row.request]
        if row.kind == Kind.GONE:
            place.watch.ended(row.request, row.at)
            return
        spans = place.watch.finished(
            row.request,
            row.at,
            cached_tokens=None if row.cached < 0.0 else row.cached,
            output_tokens=None if row.output < 0.0 else row.output,
        )
        for span in spans:
            self._learn(place, span, row.at)

    def _learn(self, place: _Place, span: Span, now: float) -> None:
        """The kind learns from the span as if the instance were as fast as its kind; what is left over is the instance's pace."""
        fit = self._fits[place.kind]
        share = fit.share(span)
        if share is not None and fit.spans >= ENOUGH_SPANS and share > 0.0:
            off = min(PACE_MOST, max(1.0 / PACE_MOST, 1.0 / share))
            place.pace += PACE * (off - place.pace)
            place.seen += 1
        fit.learn(replace(span, seconds=span.seconds / self._pace(place)), now)

    def _compare(self) -> None:
        paces: dict[str, list[float]] = {}
        for place in self._places.values():
            if place.seen >= PACE_ENOUGH:
                paces.setdefault(place.kind, []).append(place.pace)
        self._usual = {kind: median(known) for kind, known in paces.items()}

    def _pace(self, place: _Place) -> float:
        """How long an instance takes for a second of its kind; one alone is its kind."""
        if place.seen < PACE_ENOUGH or self._kinds[place.kind] < 2:
            return 1.0
        return place.pace / self._usual.get(place.kind, place.pace)


def _differ(one: EngineProfile, other: EngineProfile) -> bool:
    """Whether prompts or steps take noticeably different times by them."""
    pairs = (
        (one.prefill(_PROBE_TOKENS), other.prefill(_PROBE_TOKENS)),
        (one.prefill(10 * _PROBE_TOKENS), other.prefill(10 * _PROBE_TOKENS)),
        (_step(one), _step(other)),
    )
    return any(abs(after - before) > WORTH_TELLING * before for before, after in pairs)


def _step(profile: EngineProfile) -> float:
    return profile.step(computed=16, sequences=16, resident=16_000)
