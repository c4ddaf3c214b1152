"""One scheduler core in real time: plan a step, wait until it would be over, hand out its tokens, plan the next.

Steps follow one another on absolute deadlines: a step begins when the one before was due, not when the event loop came round
to it, so a late loop delays single tokens but never slows the engine down. Only when the loop is more than ``FORGIVEN`` seconds
behind is the lost time given up, and counted.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence, EngineStep

MAX_LAG_SECONDS = 1.0


class TokenReceiver(Protocol):
    """Who gets the tokens of one sequence."""

    sequence: EngineSequence

    @property
    def end_reason(self) -> str:
        """Why it will end if the core lets it reach its last token."""
        ...

    def on_token(self, last: bool) -> None:
        """One more token; ``last`` = the sequence has left the core."""
        ...

    def on_ended(self, reason: str) -> None:
        """The sequence left the core without a token: aborted, or it wanted none."""
        ...


class StepObserver(Protocol):
    """Who counts."""

    def observe_step(self, rank: int, step: EngineStep, began_at: float, ended_at: float) -> None:
        """A step was delivered."""
        ...


class RealtimeDriver:
    """Drives the core of one data-parallel rank."""

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

    @property
    def unfinished(self) -> int:
        """Sequences that run or wait."""
        return len(self._receivers)

    def submit(self, receiver: TokenReceiver) -> None:
        """Queue a sequence; its tokens go to ``receiver``. Raises what ``EngineCore.add`` raises."""
        self.core.add(receiver.sequence)
        self._receivers[receiver.sequence.id] = receiver
        self.wake()

    def abort(self, sequence_id: str) -> None:
        """Drop a sequence: its slot is free from the next step on. Nobody is told."""
        if self._receivers.pop(sequence_id, None) is not None:
            self.core.abort(sequence_id)

    def wake(self) -> None:
        """There may be something to do."""
        if self._handle is None and not self._stopped:
            # One turn of the loop later: requests that arrive together start in the same step.
            self._handle = self._loop.call_soon(self._begin_now)

    def pause(self) -> None:
        """Freeze after the step under way."""
        self.core.pause()

    def resume(self) -> None:
        """Go on."""
        self.core.resume()
        self.wake()

    def stop(self) -> None:
        """No more steps, and nobody is told."""
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
        if self._handle is None and not self._stopped:
            self._begin(self._due_at)

    def _reason(self, sequence_id: str, reason: str) -> str:
        """The core knows only that the last token was made; the script knows why it was the last."""
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
