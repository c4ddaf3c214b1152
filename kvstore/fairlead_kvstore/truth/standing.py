"""How sure a slice is: complete or not, why, and since when.

While a stream is broken off nobody can tell what the engine holds, so the slice is not complete; what it was, and what becomes of
it meanwhile, is kept for the moment when the stream goes on.
"""

from fairlead_kvstore.truth.changes import Change, Marked


class Standing:
    """The mark of one slice. ``since`` is monotonic seconds; what changes is appended to ``out``."""

    __slots__ = ("_before", "_instance", "complete", "reason", "since")

    def __init__(self, instance: str, now: float) -> None:
        self._instance = instance
        self.complete = False
        self.reason = "nothing was seen yet"
        self.since = now
        self._before: tuple[bool, str, float] | None = None

    def mark(self, complete: bool, reason: str, now: float, out: list[Change]) -> None:
        """It is so from now on; while the stream is broken off, from when it goes on."""
        if self._before is not None:
            self._before = (complete, reason, now)
        elif (complete, reason) != (self.complete, self.reason):
            self.complete, self.reason, self.since = complete, reason, now
            out.append(Marked(self._instance, complete, reason, now))

    def suspend(self, reason: str, now: float, out: list[Change]) -> None:
        """The stream broke off."""
        if self._before is None:
            before = (self.complete, self.reason, self.since)
            self.mark(False, reason, now, out)
            self._before = before

    def resume(self, out: list[Change]) -> None:
        """The stream goes on."""
        if self._before is not None:
            (complete, reason, since), self._before = self._before, None
            self.mark(complete, reason, since, out)

    def kept(self) -> tuple[bool, str, float]:
        """What it is, or will be when the stream goes on."""
        return self._before or (self.complete, self.reason, self.since)

    def restore(self, kept: tuple[bool, str, float], reason: str, now: float, out: list[Change]) -> None:
        """Be what was kept once the stream goes on; until then nobody can tell."""
        self.restart()
        self.complete, self.reason, self.since = kept
        self.suspend(reason, now, out)

    def restart(self) -> None:
        """Another stream: what this one would have gone on as is of no interest."""
        self._before = None
