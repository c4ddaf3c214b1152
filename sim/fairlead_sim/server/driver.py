"""One scheduler core in real time: plan a step, wait until it would be over, hand out its tokens, plan the next.

Steps follow one another on absolute deadlines: a step begins when the one before was due, not when the event loop came round
to it, so a late loop delays single tokens but never slows the engine down. Only when the loop is more than ``FORGIVEN`` seconds
behind is the lost time given up, and counted.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from fairlead_sim.blocks import KvEvent
from fairlead_sim.engine import EngineCore, Sequence, Step

FORGIVEN = 1.0


class Receiver(Protocol):
    """Who gets the tokens of one sequence."""

    sequence: Sequence

    @property
    def ending(self) -> str:
        """Why it will end if the core lets it reach its last token."""
        ...

    def token(self, last: bool) -> None:
        """One more token; ``last`` = the sequence has left the core."""
        ...

    def ended(self, reason: str) -> None:
        """The sequence left the core without a token: aborted, or it wanted none."""
        ...


class Observer(Protocol):
    """Who counts."""

    def step(self, rank: int, step: Step, began: float, ended: float) -> None:
        """A step was delivered."""
        ...


class Driver:
    """Drives the core of one data-parallel rank."""

    def __init__(
        self,
        core: EngineCore,
        *,
        rank: int = 0,
        observer: Observer | None = None,
        publish: Callable[[list[KvEvent]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.core = core
        self.rank = rank
        self.given_up_seconds = 0.0
        self._observer = observer
        self._publish = publish
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._receivers: dict[str, Receiver] = {}
        self._step: Step | None = None
        self._began = 0.0
        self._due = 0.0
        self._handle: asyncio.Handle | None = None
        self._stopped = False

    @property
    def unfinished(self) -> int:
        """Sequences that run or wait."""
        return len(self._receivers)

    def submit(self, receiver: Receiver) -> None:
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
        self._began = at
        self._due = at + step.seconds
        wait = self._due - self._clock()
        if wait > 0:
            self._handle = self._loop.call_later(wait, self._end)
            return
        if wait < -FORGIVEN:
            self.given_up_seconds -= wait
            self._due -= wait
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
            self._observer.step(self.rank, step, self._began, self._due)
        self._deliver(step)
        if self._handle is None and not self._stopped:
            self._begin(self._due)

    def _reason(self, sequence_id: str, reason: str) -> str:
        """The core knows only that the last token was made; the script knows why it was the last."""
        receiver = self._receivers.get(sequence_id)
        return reason if receiver is None else receiver.ending

    def _deliver(self, step: Step) -> None:
        receivers = self._receivers
        leaving = {sequence.id for sequence, _ in step.finished} if step.finished else ()
        for sequence in step.tokens:
            sequence_id = sequence.id
            if sequence_id in leaving:
                receiver = receivers.pop(sequence_id, None)
                if receiver is not None:
                    receiver.token(True)
            else:
                receiver = receivers.get(sequence_id)
                if receiver is not None:
                    receiver.token(False)
        for sequence, reason in step.finished:
            receiver = receivers.pop(sequence.id, None)
            if receiver is not None:
                receiver.ended(reason)
