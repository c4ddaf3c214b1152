"""The profiling service. It reads timing events of workers and reports of engines. Workers get
the profiles of engines, how many requests each computes at a time, and how much of its memory may
be planned for.

The gateway's bounds of each engine: its sequences, and the share of its memory to plan for.

Requests above a bound wait in the gateway, so that its order counts and not that of the engine's
queue.

**Sequences.** The bound is that of the engine's profile. An engine without one has no bound until
it reports waiting requests twice in a row. Then it is the largest number of running requests in
those reports.

A bound that is too low costs throughput, and shows: the engine runs as many and has none waiting.
Then the bound grows by one, and after each try that was right by twice as much, up to a quarter. If
requests wait in the engine after that, it falls back to what ran. The next try comes later: after
`MIN_TRY_SECONDS` first, then four times as long each time, and at most `MAX_TRY_SECONDS`.

Why so small and so rare: a try lasts until the next report, and every gateway tries for itself.
Meanwhile, the engine's own queue decides who goes first.

An engine that reports nothing has the bound of its profile. Without a profile it has none: all
requests are sent there, and wait in its own queue.

**Memory.** The plan counts the tokens of requests. An engine may have less room: it rounds to
blocks, reserves the longest answer, or has other users. That shows: requests wait in it, and less
is free than `SHORT_SHARE`, or than one of the running ones has on average. Then the share that may
be planned for falls by `FALL` of itself. With a report of none waiting it rises by `RISE` of what
is withheld.

So the share settles where memory is short in few reports: in a quarter of them, if a twentieth is
withheld. Each gateway learns for itself. Shares that differ approach one another: the smaller one
rises faster. It is at least `MIN_SHARE`. Requests that wait in engines on purpose
(`may_queue_for_memory`) lower it, too. An engine that does not report its memory has the whole
share.

Pure: callers pass the time and the reports.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from fairlead.fleet.model import Fleet
from fairlead.fleet.signals import EngineSignals
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead_gateway.profiles.messages import TIMING_REPORT_SECONDS, ProfileUpdate, TimingEvent
from fairlead_gateway.profiles.profile_estimator import LearnedProfile, ProfileEstimator
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, block_ends

MIN_TRY_SECONDS: Final = 4.0
MAX_TRY_SECONDS: Final = 512.0
FALL: Final = 0.02
RISE: Final = 0.15
MIN_SHARE: Final = 0.5
_WHOLE_SHARE: Final = 0.999
"""A share from which the next rise makes it whole, so that it changes no more."""
SHORT_SHARE: Final = 0.15
_PAUSE_GROWTH: Final = 4
_MAX_GROWTH_SHARE: Final = 4
_MAX_SEQUENCES: Final = 1 << 20
"""No engine computes more at a time, whatever it reports."""


class SequenceBound:
    """The bound of one engine; `value` is None while none is known.

    stated: that of its profile; None without a profile.
    """

    __slots__ = ("_floor", "_growth", "_next_try_at", "_ran", "_tries_after", "_was_tried", "stated", "value")

    def __init__(self, stated: int | None) -> None:
        self.stated = self.value = self._floor = stated
        self._ran: float | None = None  # the most in reports with waiting requests, in a row
        self._next_try_at = float("-inf")
        self._tries_after = MIN_TRY_SECONDS
        self._was_tried = False
        self._growth = 1

    def observe(self, running: float | None, waiting: float | None, now: float) -> None:
        """Learns from one report. A missing value teaches nothing."""
        if running is None or waiting is None:
            return
        if waiting > 0:
            self._on_queue(running, now)
            return
        self._ran = None
        if self.value is None or running < self.value or now < self._next_try_at:
            return
        if self._was_tried:  # the last try was right
            self._floor, self._tries_after = self.value, MIN_TRY_SECONDS
            self._growth = min(2 * self._growth, max(1, self.value // _MAX_GROWTH_SHARE))
        self._was_tried = True
        self.value = min(_MAX_SEQUENCES, self.value + self._growth)

    def _on_queue(self, running: float, now: float) -> None:
        before, self._ran = self._ran, max(running, self._ran or 0.0)
        if self._was_tried:
            self._was_tried, self._growth = False, 1
            self.value = self._floor = max(self._floor or 0, int(min(self.value or 0, running)))
            self._next_try_at = now + self._tries_after
            self._tries_after = min(MAX_TRY_SECONDS, _PAUSE_GROWTH * self._tries_after)
        elif before is not None and self.stated is None:
            found = max(1, round(min(_MAX_SEQUENCES, self._ran)))
            if self.value is None or found < self.value:
                self.value = self._floor = found


def next_share(share: float, signals: EngineSignals) -> float:
    """Returns the share of memory after a report. A missing value changes nothing."""
    running, waiting, usage = signals.running, signals.waiting, signals.kv_usage
    if running is None or waiting is None or usage is None:
        return share
    if waiting <= 0.0:
        return 1.0 if share > _WHOLE_SHARE else share + RISE * (1.0 - share)
    is_memory_short = running > 0.0 and 1.0 - usage < max(SHORT_SHARE, usage / running)
    return max(MIN_SHARE, share - FALL * share) if is_memory_short else share


class EngineCapacities:
    """The bounds and shares of all engines of a fleet, by instance."""

    def __init__(self) -> None:
        self._bounds: dict[str, SequenceBound] = {}
        self.memory_shares: dict[str, float] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Adds and drops instances. The bound of one whose profile states another begins again."""
        bounds: dict[str, SequenceBound] = {}
        for instances in fleet.instances.values():
            for instance in instances:
                stated = None if instance.profile is None else instance.profile.max_sequences
                known = self._bounds.get(instance.id)
                bounds[instance.id] = SequenceBound(stated) if known is None or known.stated != stated else known
        self._bounds = bounds
        self.memory_shares = {name: self.memory_shares.get(name, 1.0) for name in bounds}

    def observe(self, instance: str, signals: EngineSignals, now: float) -> tuple[int | None, float | None]:
        """Returns the bound and the share of an instance that a report changes, each else None."""
        bound = self._bounds.get(instance)
        if bound is None:
            return None, None
        before, share_before = bound.value, self.memory_shares[instance]
        bound.observe(signals.running, signals.waiting, now)
        share = self.memory_shares[instance] = next_share(share_before, signals)
        return None if bound.value == before else bound.value, None if share == share_before else share

    def sequence_bounds(self) -> dict[str, int]:
        return {name: bound.value for name, bound in self._bounds.items() if bound.value is not None}


_log = logging.getLogger("fairlead.gateway")


class ProfilingService:
    """The service that runs the profile estimator every few seconds; `broadcast` sends a message to
    all workers.
    """

    def __init__(self, *, broadcast: Callable[[ProfileUpdate], None], clock: Clock) -> None:
        self._broadcast = broadcast
        self._clock = clock
        self._estimator = ProfileEstimator()
        self._capacities = EngineCapacities()
        self._resend_all = False
        self._task: asyncio.Task[None] | None = None

    def update_fleet(self, fleet: Fleet) -> None:
        self._estimator.update_fleet(fleet)
        self._capacities.update_fleet(fleet)

    def on_signals(self, instance: str, signals: EngineSignals, now: float) -> None:
        """Learns from a report of an engine how many requests it computes at a time, and how much
        of its memory may be planned for.
        """
        bound, share = self._capacities.observe(instance, signals, now)
        if bound is not None or share is not None:
            bounds = {} if bound is None else {instance: bound}
            self._broadcast(ProfileUpdate({}, bounds, {} if share is None else {instance: share}))

    def on_timings(self, timings: Sequence[TimingEvent]) -> None:
        self._estimator.add_timings(timings)

    def on_peer_dispatch(self, instance: str, hashes: Sequence[int]) -> None:
        ends = block_ends(len(hashes) + 1)  # the last block is not full
        self._estimator.on_peer_dispatch(instance, ends[-1] / BYTES_PER_TOKEN, self._clock.now())

    def on_worker_ready(self) -> None:
        self._resend_all = True

    def learned_profile(self, instance: str) -> LearnedProfile | None:
        """Returns the profile of an instance; None for one whose requests are not measured."""
        return self._estimator.learned_profile(instance)

    def start(self) -> None:
        work = run_despite_defects(self._run, _log, "profiles of engines")
        self._task = asyncio.get_running_loop().create_task(work, name="learning")

    async def stop(self) -> None:
        task, self._task = self._task, None
        await cancel_and_wait(task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TIMING_REPORT_SECONDS)
            changed = self._estimator.update(self._clock.now())
            if self._resend_all:
                self._resend_all = False
                profiles, bounds = dict(self._estimator.sent_profiles), self._capacities.sequence_bounds()
                self._broadcast(ProfileUpdate(profiles, bounds, dict(self._capacities.memory_shares)))
            elif changed:
                self._broadcast(ProfileUpdate(dict(changed)))
