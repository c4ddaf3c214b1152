"""How sure a slice is: complete or not, why, and since when.

While a stream is broken off nobody can tell what the engine holds, so the slice is not complete; what it was, and what becomes of
it meanwhile, is kept for the moment when the stream goes on. Beside that there may be a *doubt* about what is held, which comes and
goes by itself: a slice that would be complete is not, as long as there is one.
"""

from fairlead_kvstore.blockstore.changes import Change, CompletenessChanged

CompletenessMark = tuple[bool, str, float]
"""Complete, why, and since when (monotonic seconds)."""


class Completeness:
    """The mark of one slice. ``since`` is monotonic seconds; what changes is appended to ``out``."""

    __slots__ = ("_before", "_instance", "_stream", "complete", "doubt", "reason", "since")

    def __init__(self, instance: str, now: float) -> None:
        self._instance = instance
        self.complete = False
        self.reason = "nothing was seen yet"
        self.since = now
        self.doubt = ""
        self._stream: CompletenessMark = (self.complete, self.reason, now)
        self._before: CompletenessMark | None = None

    def set_mark(self, complete: bool, reason: str, now: float, out: list[Change]) -> None:
        """It is so from now on; while the stream is broken off, from when it goes on."""
        if self._before is not None:
            self._before = (complete, reason, now)
        else:
            if (complete, reason) != self._stream[:2]:
                self._stream = (complete, reason, now)
            self._publish(now, out)

    def set_doubt(self, doubt: str, now: float, out: list[Change]) -> None:
        """Why something may be missed although all was heard; empty for no reason."""
        if doubt != self.doubt:
            self.doubt = doubt
            self._publish(now, out)

    def suspend(self, reason: str, now: float, out: list[Change]) -> None:
        """The stream broke off."""
        if self._before is None:
            before = self._stream
            self.set_mark(False, reason, now, out)
            self._before = before

    def resume(self, out: list[Change]) -> None:
        """The stream goes on."""
        if self._before is not None:
            (complete, reason, since), self._before = self._before, None
            self.set_mark(complete, reason, since, out)

    def mark_after_resume(self) -> CompletenessMark:
        """What it is but for the doubt, or will be when the stream goes on."""
        return self._before or self._stream

    def restore(self, kept: CompletenessMark, doubt: str, reason: str, now: float, out: list[Change]) -> None:
        """Be what was kept once the stream goes on; until then nobody can tell."""
        self.reset()
        self._stream, self.doubt = kept, doubt
        self.complete, self.reason, self.since = with_doubt(kept, doubt)
        self.suspend(reason, now, out)

    def reset(self) -> None:
        """Another stream: what this one would have gone on as is of no interest."""
        self._before = None

    def _publish(self, now: float, out: list[Change]) -> None:
        complete, reason, _ = with_doubt(self._stream, self.doubt)
        if (complete, reason) != (self.complete, self.reason):
            self.complete, self.reason, self.since = complete, reason, now
            out.append(CompletenessChanged(self._instance, complete, reason, now))


def with_doubt(mark: CompletenessMark, doubt: str) -> CompletenessMark:
    """What a mark is beside a doubt."""
    complete, _, since = mark
    return (False, doubt, since) if complete and doubt else mark
