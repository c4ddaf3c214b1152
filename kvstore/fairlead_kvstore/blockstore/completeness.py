"""The completeness mark of one instance: complete or not, why, and since when.

While a stream is interrupted, the engine's blocks are unknown and the instance is incomplete. The
earlier mark, and its changes meanwhile, take effect when the stream resumes.
"""

from fairlead_kvstore.blockstore.changes import Change, CompletenessChanged

CompletenessMark = tuple[bool, str, float]
"""Complete, the reason, and since when (monotonic seconds)."""


class Completeness:
    """The completeness mark of one instance. Methods append changes of the mark to ``out``."""

    def __init__(self, instance: str, now: float) -> None:
        self._instance = instance
        self.mark: CompletenessMark = (False, "no KV event was read yet", now)
        self._later: CompletenessMark | None = None

    def set_mark(self, complete: bool, reason: str, now: float, out: list[Change]) -> None:
        """Sets the mark. While the stream is interrupted, it applies only when the stream
        resumes.
        """
        if self._later is not None:
            self._later = complete, reason, now
        elif (complete, reason) != self.mark[:2]:
            self.mark = complete, reason, now
            out.append(CompletenessChanged(self._instance, complete, reason, now))

    def suspend(self, reason: str, now: float, out: list[Change]) -> None:
        """Marks the instance incomplete because its stream was interrupted."""
        if self._later is None:
            later = self.mark
            self.set_mark(False, reason, now, out)
            self._later = later

    def resume(self, out: list[Change]) -> None:
        """Restores the mark because the stream resumed."""
        if self._later is not None:
            (complete, reason, since), self._later = self._later, None
            self.set_mark(complete, reason, since, out)

    def mark_after_resume(self) -> CompletenessMark:
        return self._later or self.mark

    def restore(self, mark: CompletenessMark, reason: str, now: float, out: list[Change]) -> None:
        """Sets the mark of a snapshot, which applies when the stream resumes. Until then, the
        instance is incomplete for ``reason``.
        """
        self.reset()
        self.mark = mark
        self.suspend(reason, now, out)

    def reset(self) -> None:
        """Discards the mark that would apply when the stream resumes, because another stream
        begins.
        """
        self._later = None
