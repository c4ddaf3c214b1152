"""The completeness mark of one instance: complete or not, why, and since when.

While a stream is interrupted, the engine's blocks are unknown and the instance is incomplete. The
earlier mark, and its changes meanwhile, take effect when the stream resumes. A *doubt* is a
separate reason that comes and goes: an instance that would be complete is not while a doubt exists.
"""

from fairlead_kvstore.blockstore.changes import Change, CompletenessChanged

CompletenessMark = tuple[bool, str, float]
"""Complete, the reason, and since when (monotonic seconds)."""


class Completeness:
    """The completeness mark of one instance.

    ``since`` is monotonic seconds. Methods append changes of the mark to ``out``.
    """

    def __init__(self, instance: str, now: float) -> None:
        self._instance = instance
        self.complete = False
        self.reason = "no KV event was read yet"
        self.since = now
        self.doubt = ""
        self._stream: CompletenessMark = (self.complete, self.reason, now)
        self._before: CompletenessMark | None = None

    def set_mark(self, complete: bool, reason: str, now: float, out: list[Change]) -> None:
        """Sets the mark. While the stream is interrupted, it applies only when the stream
        resumes.
        """
        if self._before is not None:
            self._before = (complete, reason, now)
        else:
            if (complete, reason) != self._stream[:2]:
                self._stream = (complete, reason, now)
            self._publish(now, out)

    def set_doubt(self, doubt: str, now: float, out: list[Change]) -> None:
        """Sets the reason why blocks may be missing although every event was read; empty for
        none.
        """
        if doubt != self.doubt:
            self.doubt = doubt
            self._publish(now, out)

    def suspend(self, reason: str, now: float, out: list[Change]) -> None:
        """Marks the instance incomplete because its stream was interrupted."""
        if self._before is None:
            before = self._stream
            self.set_mark(False, reason, now, out)
            self._before = before

    def resume(self, out: list[Change]) -> None:
        """Restores the mark because the stream resumed."""
        if self._before is not None:
            (complete, reason, since), self._before = self._before, None
            self.set_mark(complete, reason, since, out)

    def mark_after_resume(self) -> CompletenessMark:
        """Returns the mark without the doubt: the current one, or the one that applies when the
        stream resumes.
        """
        return self._before or self._stream

    def restore(self, mark: CompletenessMark, doubt: str, reason: str, now: float, out: list[Change]) -> None:
        """Sets the mark of a snapshot, which applies when the stream resumes. Until then, the
        instance is incomplete for ``reason``.
        """
        self.reset()
        self._stream, self.doubt = mark, doubt
        self.complete, self.reason, self.since = with_doubt(mark, doubt)
        self.suspend(reason, now, out)

    def reset(self) -> None:
        """Discards the mark that would apply when the stream resumes, because another stream
        begins.
        """
        self._before = None

    def _publish(self, now: float, out: list[Change]) -> None:
        complete, reason, _ = with_doubt(self._stream, self.doubt)
        if (complete, reason) != (self.complete, self.reason):
            self.complete, self.reason, self.since = complete, reason, now
            out.append(CompletenessChanged(self._instance, complete, reason, now))


def with_doubt(mark: CompletenessMark, doubt: str) -> CompletenessMark:
    """Returns the mark, or an incomplete one with the doubt as its reason if there is a doubt."""
    complete, _, since = mark
    return (False, doubt, since) if complete and doubt else mark
