"""One scheduler core in real time: plan a step, wait for its end, deliver its tokens, plan the
next.

Steps follow absolute deadlines. A step begins when the one before was due, not when the event loop
got to it. So a late loop delays single tokens but does not slow the engine down. If the loop is
more than ``MAX_LAG_SECONDS`` behind, the lost time is skipped and counted.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence, EngineStep

MAX_LAG_SECONDS = 1.0


class TokenReceiver(Protocol):
    """The receiver of one sequence's tokens."""

    sequence: EngineSequence

    @property
    def end_reason(self) -> str:
        """Returns the finish reason for a sequence that reaches its last token."""

    def on_token(self, last: bool) -> None:
        """Notes one more token; ``last`` if the sequence has left the core."""

    def on_ended(self, reason: str) -> None:
        """Notes that the sequence left the core without a token: aborted, or without output."""


class StepObserver(Protocol):
    """The observer of delivered steps."""

    def observe_step(self, rank: int, step: EngineStep, began_at: float, ended_at: float) -> None:
        """Counts a delivered step."""


class RealtimeDriver:
    """The driver of one data-parallel rank's core."""

    def __init__(
        self,
        core: EngineCore,
        *,
        rank: int = 0,
        observer: StepObserver | None = None,
        publish: Callable[[list[KvEvent]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.core = core
        self.rank = rank
        self.skipped_seconds = 0.0
        self._observer = observer
        self._publish = publish
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._receivers: dict[str, TokenReceiver] = {}
        self._step: EngineStep | None = None
        self._began_at = 0.0
        self._due_at = 0.0
        self._handle: asyncio.Handle | None = None
        self._stopped = False
        self._hung = False

    @property
    def unfinished(self) -> int:
        return len(self._receivers)

    def submit(self, receiver: TokenReceiver) -> None:
        """Queues a sequence, whose tokens go to ``receiver``. Raises the errors of
        ``EngineCore.add``.
        """
        self.core.add(receiver.sequence)
        self._receivers[receiver.sequence.id] = receiver
        self.wake()

    def abort(self, sequence_id: str) -> None:
        if self._receivers.pop(sequence_id, None) is not None:
            self.core.abort(sequence_id)

    def wake(self) -> None:
        """Starts the next step soon if none is running."""
        if self._handle is None and not self._stopped and not self._hung:
            # One iteration later: requests that arrive together start in the same step.
            self._handle = self._loop.call_soon(self._begin_now)

    def pause(self) -> None:
        self.core.pause()

    def resume(self) -> None:
        self.core.resume()
        self.wake()

    def set_hung(self, hung: bool) -> None:
        """Hangs the core, in the middle of a step too, or lets it go on from there."""
        if hung == self._hung:
            return
        self._hung = hung
        if hung and self._handle is not None:
            self._handle.cancel()
            self._handle = None
        elif not hung and self._step is not None and not self._stopped:
            self._due_at = self._clock()
            self._handle = self._loop.call_soon(self._end)
        elif not hung:
            self.wake()

    def stop(self) -> None:
        """Stops permanently, without notifications."""
        self._stopped = True
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _begin_now(self) -> None:
        self._handle = None
        self._begin(self._clock())

    def _begin(self, at: float) -> None:
        step = self.core.step(at)
        if step is None:
            return
        self._step = step
        self._began_at = at
        self._due_at = at + step.seconds
        wait = self._due_at - self._clock()
        if wait > 0:
            self._handle = self._loop.call_later(wait, self._end)
            return
        if wait < -MAX_LAG_SECONDS:
            self.skipped_seconds -= wait
            self._due_at -= wait
        self._handle = self._loop.call_soon(self._end)

    def _end(self) -> None:
        step, self._step = self._step, None
        self._handle = None
        assert step is not None
        if step.finished:
            step.finished = [(sequence, self._reason(sequence.id, reason)) for sequence, reason in step.finished]
        if step.events and self._publish is not None:
            self._publish(step.events)
        if self._observer is not None:
            self._observer.observe_step(self.rank, step, self._began_at, self._due_at)
        self._deliver(step)
        if self._handle is None and not self._stopped and not self._hung:
            self._begin(self._due_at)

    def _reason(self, sequence_id: str, reason: str) -> str:
        receiver = self._receivers.get(sequence_id)
        return reason if receiver is None else receiver.end_reason

    def _deliver(self, step: EngineStep) -> None:
        receivers = self._receivers
        leaving = {sequence.id for sequence, _ in step.finished} if step.finished else ()
        for sequence in step.tokens:
            sequence_id = sequence.id
            if sequence_id in leaving:
                receiver = receivers.pop(sequence_id, None)
                if receiver is not None:
                    receiver.on_token(True)
            else:
                receiver = receivers.get(sequence_id)
                if receiver is not None:
                    receiver.on_token(False)
        for sequence, reason in step.finished:
            receiver = receivers.pop(sequence.id, None)
            if receiver is not None:
                receiver.on_ended(reason)
