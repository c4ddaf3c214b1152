"""The learning part of the helper: rows of workers in, profiles of engines out, every few seconds."""

import asyncio
from collections.abc import Callable, Sequence

from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_gateway.ipc.messages import ProfileUpdate
from fairlead_gateway.ipc.timing_events import TimingEvents
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, block_ends
from fairlead_gateway.supervisor.profiling.profile_estimator import LearnedProfile, ProfileEstimator


class ProfilingService:
    """``tell`` sends a message to all workers. Start and stop it on the running loop."""

    def __init__(self, *, broadcast: Callable[[ProfileUpdate], None], clock: Clock, limits: Limits) -> None:
        self._broadcast = broadcast
        self._clock = clock
        self._seconds = limits.timing_report_seconds
        self._estimator = ProfileEstimator(limits)
        self._resend_all = False
        self._task: asyncio.Task[None] | None = None

    def update_fleet(self, fleet: Fleet) -> None:
        """Take over who is there."""
        self._estimator.update_fleet(fleet)

    def on_timings(self, timings: TimingEvents) -> None:
        """A worker tells of its requests."""
        self._estimator.add_timings(timings.rows, timings.dropped)

    def on_peer_dispatch(self, instance: str, hashes: Sequence[int]) -> None:
        """Another gateway sent a prompt to an instance."""
        ends = block_ends(len(hashes) + 1)  # the last block is not full
        self._estimator.on_peer_dispatch(instance, ends[-1] / BYTES_PER_TOKEN, self._clock.now())

    def on_worker_ready(self) -> None:
        """A worker knows nothing yet."""
        self._resend_all = True

    def learned_profile(self, instance: str) -> LearnedProfile | None:
        """What is known of an instance's engine; None where nothing is learned."""
        return self._estimator.learned_profile(instance)

    def start(self) -> None:
        """Begin on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="learning")

    async def stop(self) -> None:
        """End it."""
        task, self._task = self._task, None
        await cancel_and_wait(task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            changed = self._estimator.update(self._clock.now())
            if self._resend_all:
                self._resend_all, changed = False, self._estimator.sent_profiles()
            if changed:
                self._broadcast(ProfileUpdate(dict(changed)))
