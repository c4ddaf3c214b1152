"""The profiling service. It reads timing events of workers and reports of engines. Workers get
the profiles of engines, how many requests each computes at a time, and how much of its memory may
be planned for.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from fairlead.fleet.model import Fleet
from fairlead.fleet.signals import EngineSignals
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead_gateway.ipc.messages import ProfileUpdate, TimingEvents
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, block_ends
from fairlead_gateway.supervisor.profiling.engine_capacity import EngineCapacities
from fairlead_gateway.supervisor.profiling.profile_estimator import LearnedProfile, ProfileEstimator

_log = logging.getLogger("fairlead.gateway")


class ProfilingService:
    """The service that runs the profile estimator every few seconds; `broadcast` sends a message to
    all workers.
    """

    def __init__(self, *, broadcast: Callable[[ProfileUpdate], None], clock: Clock, limits: Limits) -> None:
        self._broadcast = broadcast
        self._clock = clock
        self._seconds = limits.timing_report_seconds
        self._estimator = ProfileEstimator(limits)
        self._capacities = EngineCapacities()
        self._resend_all = False
        self._task: asyncio.Task[None] | None = None

    def update_fleet(self, fleet: Fleet) -> None:
        """Adds instances that are new and drops those that left."""
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

    def on_timings(self, timings: TimingEvents) -> None:
        """Adds the timing events of a worker."""
        self._estimator.add_timings(timings.rows, timings.dropped)

    def on_peer_dispatch(self, instance: str, hashes: Sequence[int]) -> None:
        """Records that a peer sent a prompt to an instance."""
        ends = block_ends(len(hashes) + 1)  # the last block is not full
        self._estimator.on_peer_dispatch(instance, ends[-1] / BYTES_PER_TOKEN, self._clock.now())

    def on_worker_ready(self) -> None:
        """Sends all profiles with the next update, since a new worker has none."""
        self._resend_all = True

    def learned_profile(self, instance: str) -> LearnedProfile | None:
        """Returns the profile of an instance; None for one whose requests are not measured."""
        return self._estimator.learned_profile(instance)

    def start(self) -> None:
        """Starts the task on the running loop."""
        work = run_despite_defects(self._run, _log, "profiles of engines")
        self._task = asyncio.get_running_loop().create_task(work, name="learning")

    async def stop(self) -> None:
        """Stops the task."""
        task, self._task = self._task, None
        await cancel_and_wait(task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            changed = self._estimator.update(self._clock.now())
            if self._resend_all:
                self._resend_all = False
                profiles, bounds = dict(self._estimator.sent_profiles()), self._capacities.sequence_bounds()
                self._broadcast(ProfileUpdate(profiles, bounds, dict(self._capacities.memory_shares)))
            elif changed:
                self._broadcast(ProfileUpdate(dict(changed)))
