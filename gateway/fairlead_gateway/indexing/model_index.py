"""One model's index in the helper: its bridge, and for each instance how far it is followed and how good it was. No I/O, no clock."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from fairlead.limits import Limits
from fairlead_gateway.hot_counts import HotShare
from fairlead_gateway.telemetry.index import Followed, InstanceIndex
from fairlead_kvstore.index.census import Census, census
from fairlead_kvstore.index.hints import Hint, Hot, hints
from fairlead_kvstore.index.victims import Victim, victims
from fairlead_kvstore.links.bridge import Bridge, Correction, Mirror
from fairlead_kvstore.links.drift import Drift
from fairlead_kvstore.truth.changes import Change, Cleared

_HALF = 0.5
_COUNT_LEAST_SECONDS = 0.5


class _Flight:
    """A prompt at an instance: when it was sent last, and how much of it was linked then, as a share of its bytes."""

    __slots__ = ("at", "count", "hashes", "linked")

    def __init__(self, hashes: Sequence[int], linked: float, at: float) -> None:
        self.hashes = hashes
        self.linked = linked
        self.at = at
        self.count = 1


class _Answer(NamedTuple):
    """An answer that is to be judged when what its engine tells of that time has arrived. Tokens."""

    due: float
    instance: str
    hashes: Sequence[int]
    sent_at: float
    credited: float
    expected: float
    reported: int | None
    prompt: int
    covered: float


class ModelIndex:
    """``mirror`` is what engines told of the model ``key``. Times are monotonic seconds.
    ``on_relearn`` hears when links are wrong."""

    def __init__(
        self,
        key: str,
        mirror: Mirror,
        *,
        secret: bytes,
        limits: Limits,
        on_relearn: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_relearn = on_relearn
        self.bridge = Bridge(key, mirror, secret=secret, limits=limits)
        self._most = limits.link_flights
        self._hints_most = limits.hints
        self._census_seconds = limits.index_census_seconds
        self._count_due = float("-inf")
        self._counted: Mapping[str, Census] = {}
        self._victims: Mapping[str, Victim] = {}
        self._drifts: dict[str, Drift] = {}
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._answers: deque[_Answer] = deque()
        self._judged_seconds = limits.link_judged_seconds
        self._late_seconds = limits.link_late_seconds

    def sent(self, instance: str, tail: int, hashes: Sequence[int], ends: Sequence[int], size: int, now: float) -> bool:
        """A worker of this gateway sent a prompt there; whether a part of it is not linked."""
        key, table = (instance, tail), self.bridge.table
        linked = table.linked(hashes)
        flight = self._flights.get(key)
        if flight is not None:
            flight.count += 1
            flight.at = now
        else:
            if len(self._flights) >= self._most:
                del self._flights[next(iter(self._flights))]
            self._flights[key] = _Flight(hashes, ends[linked - 1] / size if linked and size else 0.0, now)
        return self.bridge.sent(instance, tail, hashes, now, ends_told=True)

    def ended(
        self,
        instance: str,
        tail: int,
        now: float,
        *,
        prompt_tokens: int | None,
        cached_tokens: int | None,
        indexed: float | None,
        matched: float,
    ) -> None:
        """It is over. The shares are those of ``channel_messages.EndedRow``."""
        self.bridge.ended(instance, tail, now)
        key = (instance, tail)
        flight = self._flights.get(key)
        if flight is None:
            return
        flight.count -= 1
        if not flight.count:
            del self._flights[key]
        if indexed is None or prompt_tokens is None or not self._complete(instance):
            return
        if len(self._answers) >= self._most:
            self._answers.popleft()
        self._answers.append(
            _Answer(
                now + self._judged_seconds,
                instance,
                flight.hashes,
                flight.at,
                indexed * prompt_tokens,
                matched * prompt_tokens,
                cached_tokens,
                prompt_tokens,
                flight.linked * prompt_tokens,
            )
        )

    def changed(self, changes: Sequence[Change]) -> None:
        """The mirror has just taken these over."""
        self.bridge.changed(changes)
        for change in changes:
            if isinstance(change, Cleared) and change.instance in self._drifts:
                self._drifts[change.instance].anew()

    def corrections(self, now: float) -> list[Correction]:
        """What workers are to be told now."""
        for instance, drift in self._drifts.items():
            if drift.over_by(now):
                self.bridge.trust(instance)
        while self._answers and self._answers[0].due <= now:
            self._judge(self._answers.popleft(), now)
        return self.bridge.corrections(now)

    def _judge(self, answer: _Answer, now: float) -> None:
        """What came of an answer against what was said of it."""
        instance, credited, reported = answer.instance, answer.credited, answer.reported
        late = reported is not None and credited > reported
        late = late and self.bridge.taken_since(instance, answer.hashes, answer.sent_at - self._late_seconds)
        if self._drift(instance).seen(
            credited, answer.expected, reported, answer.prompt, now, covered=answer.covered, late=late
        ):
            self.bridge.distrust(instance)
            self._relearn()

    def keep_only(self, instances: Iterable[str]) -> None:
        """Instances that have left the fleet are forgotten."""
        kept = set(instances)
        self.bridge.keep_only(kept)
        for gone in self._drifts.keys() - kept:
            del self._drifts[gone]
        for key in [key for key in self._flights if key[0] not in kept]:
            del self._flights[key]
        self._answers = deque(answer for answer in self._answers if answer.instance in kept)

    def count(self, now: float, stale: str | None) -> None:
        """Look anew at what each instance holds and nobody else does, where the last time is long enough ago."""
        if now < self._count_due:
            return
        mirror = self.bridge.mirror
        counted = census(mirror)
        unknown = {}
        for instance in counted:
            known = mirror.standing(instance)
            if known is None or not known.complete:
                unknown[instance] = "nothing was told of it" if known is None else known.reason
            elif instance in self._drifts and self._drifts[instance].quarantined:
                unknown[instance] = self._drifts[instance].words()
            elif stale is not None:
                unknown[instance] = stale
        ranked = victims(counted, unknown, mirror.alone(self.bridge.recent.blocks(now)))
        blocks = sum(one.blocks for one in counted.values())
        self._count_due = now + max(_COUNT_LEAST_SECONDS, self._census_seconds * blocks / 1e6)
        self._counted = counted
        self._victims = {one.instance: one for one in ranked}

    def hints(self, hot: Iterable[HotShare], ready: Collection[str]) -> list[Hint]:
        """Which of these prefixes want another home among the instances that are ready."""
        bridge, found = self.bridge, []
        for one in hot:
            link = bridge.table.get(one.digest)
            if link is not None and link.depth and bridge.block_size is not None:
                holders = sum(name in ready for name in bridge.mirror.holders(link.own))
                found.append(Hot(one.digest, one.share, one.per_second, link.depth * bridge.block_size, holders))
        unknown = sum(not self._complete(name) for name in ready)
        return hints(found, len(ready), unknown, self._hints_most)

    def look(self, instance: str, stale: str | None) -> InstanceIndex:
        """How far an instance is followed; ``stale`` says why nothing is heard, None while something is. What it holds is of the last
        ``count``."""
        drift = self._drifts.get(instance) or Drift()
        known = self.bridge.mirror.standing(instance)
        if known is None:
            state, reason = Followed.GUESSED, stale or "nothing was told of what it holds"
        elif drift.quarantined:
            state, reason = Followed.QUARANTINED, drift.words()
        elif stale is not None:
            state, reason = Followed.STALE, stale
        elif not known.complete:
            state, reason = Followed.INCOMPLETE, known.reason
        else:
            state, reason = Followed.INDEX, ""
        if state is Followed.INDEX and drift.silent and not drift.answers:
            reason = "its engine does not report cached tokens, so nothing says how good the index is"
        return InstanceIndex(
            state,
            reason,
            drift.predicted,
            drift.reported,
            drift.answers,
            drift.silent,
            drift.late,
            drift.quarantines,
            drift.ratio,
            self._counted.get(instance),
            self._victims.get(instance),
        )

    def quarantined(self) -> list[str]:
        """Instances whose index does not count at present."""
        return [instance for instance, drift in self._drifts.items() if drift.quarantined]

    def why(self, instance: str) -> str:
        """Why one of those is."""
        return self._drifts[instance].words()

    def _complete(self, instance: str) -> bool:
        known = self.bridge.mirror.standing(instance)
        return known is not None and known.complete

    def _drift(self, instance: str) -> Drift:
        drift = self._drifts.get(instance)
        if drift is None:
            drift = self._drifts[instance] = Drift()
        return drift

    def _relearn(self) -> None:
        """Where most instances drift it is not their slices that are wrong, but what prompts are linked to."""
        out = sum(drift.quarantined for drift in self._drifts.values())
        if len(self._drifts) > 1 and out > _HALF * len(self._drifts):
            self.bridge.forget_links()
            self._on_relearn()
