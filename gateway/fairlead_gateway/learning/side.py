"""The learning part of the helper: rows of workers in, profiles of engines out, every few seconds."""

import asyncio
from collections.abc import Callable, Sequence

from fairlead.clock import Clock
from fairlead.fleet import Fleet
from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead_gateway.channel_messages import Profiles
from fairlead_gateway.learning.pupil import Learned, Pupil
from fairlead_gateway.learning.rows import Rows
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN, block_ends


class LearnSide:
    """``tell`` sends a message to all workers. Start and stop it on the running loop."""

    def __init__(self, *, tell: Callable[[Profiles], None], clock: Clock, limits: Limits) -> None:
        self._tell = tell
        self._clock = clock
        self._seconds = limits.learn_tell_seconds
        self._pupil = Pupil(limits)
        self._anew = False
        self._task: asyncio.Task[None] | None = None

    def apply(self, fleet: Fleet) -> None:
        """Take over who is there."""
        self._pupil.apply(fleet)

    def heard(self, rows: Rows) -> None:
        """A worker tells of its requests."""
        self._pupil.heard(rows.rows, rows.dropped)

    def elsewhere(self, instance: str, hashes: Sequence[int]) -> None:
        """Another gateway sent a prompt to an instance."""
        ends = block_ends(len(hashes) + 1)  # the last block is not full
        self._pupil.elsewhere(instance, ends[-1] / BYTES_PER_TOKEN, self._clock.now())

    def joined(self) -> None:
        """A worker knows nothing yet."""
        self._anew = True

    def look(self, instance: str) -> Learned | None:
        """What is known of an instance's engine; None where nothing is learned."""
        return self._pupil.look(instance)

    def start(self) -> None:
        """Begin on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="learning")

    async def stop(self) -> None:
        """End it."""
        task, self._task = self._task, None
        await ended(task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            changed = self._pupil.step(self._clock.now())
            if self._anew:
                self._anew, changed = False, self._pupil.told()
            if changed:
                self._tell(Profiles(dict(changed)))
