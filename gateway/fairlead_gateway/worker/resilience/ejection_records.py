"""The records of instances that are ejected for failures by which an engine may hang.

A record begins with the ejection and lasts until the instance answers. It outlives the ejection's
pause: a probe that fails does not reset it. It shows that an engine hangs although its
`/health` says 200, and must be replaced (`fairlead.fleet.hung_engines`).

Silence and 5xx begin a record. Overload is never a failure, so it begins none. A refused connection
ends it: nothing listens, and what runs the engine sees that itself.

Why no connect timeout: an engine that hangs takes connections. A gateway that cannot connect may be
cut off itself, and a restart of the engine would not help it.

An instance without a record is probed on request: when only the requests of one caller speak
against its return (`outlier_detection`).

The only ready instance of a model is never ejected. It gets a record instead when its failures
would suffice.

The module is pure.
"""

from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from typing import Final

from fairlead.limits import Limits

_SILENCE: Final = "timeout"
_ENDING_CAUSES: Final = frozenset({"refused", "gone"})
_SERVER_ERROR_PREFIX: Final = "status-5"


@dataclass(slots=True)
class EjectionRecord:
    """One instance that has not answered since it was ejected.

    since: the ejection, in monotonic seconds.
    cause: the failures that led to it, as text.
    failed_probes: one-token probes of this worker that failed since then.
    probed_at: when the last of these probes was sent; None: none was.
    is_probing: a probe has been sent and has not ended.
    has_silence: silence was among the failures.
    """

    since: float
    cause: str
    failed_probes: int = 0
    probed_at: float | None = None
    is_probing: bool = False
    has_silence: bool = True


class EjectionRecords:
    """The ejection records of one worker, by instance.

    on_begin: called when a record begins, or a probe is requested; replaced by the prober.
    """

    def __init__(self, limits: Limits) -> None:
        self.by_instance: dict[str, EjectionRecord] = {}
        self.on_begin: Callable[[], None] = _ignore
        self._after_seconds: float = limits.ejection_probe_after_seconds
        self._interval_seconds: float = limits.ejection_probe_interval_seconds
        self._requested: set[str] = set()
        self._probing: set[str] = set()

    def begin(self, instance: str, causes: Collection[str], text: str, now: float) -> None:
        """Begins a record, unless there is one or no cause can be that of an engine that hangs.

        causes: words of the closed list of failures.
        text: the same failures as text.
        """
        if instance not in self.by_instance and any(is_hang_cause(cause) for cause in causes):
            self.by_instance[instance] = EjectionRecord(now, text, has_silence=_SILENCE in causes)
            self.on_begin()

    @property
    def needs_probes(self) -> bool:
        """Whether a probe is due now or later."""
        return bool(self.by_instance or self._requested)

    def request_probe(self, instance: str) -> None:
        """Makes a probe of the instance due now, with or without a record."""
        self._requested.add(instance)
        self.on_begin()

    def cancel_probe(self, instance: str) -> None:
        """Withdraws the request for a probe."""
        self._requested.discard(instance)

    def end(self, instance: str) -> None:
        """Ends the record of an instance that has answered."""
        self.by_instance.pop(instance, None)

    def restart(self, instance: str, now: float) -> None:
        """Restarts the record of an instance that has sent bytes to another request."""
        record = self.by_instance.get(instance)
        if record is not None:
            record.since, record.failed_probes = now, 0

    def retain(self, ids: Container[str]) -> None:
        """Ends the records of all other instances."""
        for instance in [known for known in self.by_instance if known not in ids]:
            del self.by_instance[instance]

    def on_failure(self, instance: str, cause: str) -> None:
        """Ends the record if the failure shows that nothing listens."""
        if is_ending_cause(cause):
            self.end(instance)

    def due(self, now: float) -> list[str]:
        """Returns the instances that are to be probed now."""
        due = [instance for instance, record in self.by_instance.items() if self._is_due(record, now)]
        if self._requested:
            due += [instance for instance in self._requested - self._probing if instance not in due]
        return due

    def on_probe_sent(self, instance: str, now: float) -> None:
        """Records that a probe was sent."""
        self._requested.discard(instance)
        self._probing.add(instance)
        record = self.by_instance.get(instance)
        if record is not None:
            record.probed_at, record.is_probing = now, True

    def on_probe_ended(self, instance: str, *, has_failed: bool) -> None:
        """Records the end of a probe; `has_failed` if the engine may hang."""
        self._probing.discard(instance)
        record = self.by_instance.get(instance)
        if record is not None and record.is_probing:
            record.is_probing = False
            record.failed_probes += has_failed

    def on_probe_refused(self, instance: str) -> None:
        """Ends a record of 5xx alone, since the probe was answered with 4xx.

        Why: the server answers, and no probe can succeed there, as at a model of embeddings. One
        client could keep such a record alive with bodies that the engine fails.
        """
        record = self.by_instance.get(instance)
        if record is not None and not record.has_silence:
            self.end(instance)

    def _is_due(self, record: EjectionRecord, now: float) -> bool:
        if record.is_probing or now - record.since < self._after_seconds:
            return False
        return record.probed_at is None or now - record.probed_at >= self._interval_seconds


def is_hang_cause(cause: str) -> bool:
    """Whether an engine that hangs can fail so: with silence or 5xx."""
    return cause == _SILENCE or cause.startswith(_SERVER_ERROR_PREFIX)


def is_ending_cause(cause: str) -> bool:
    """Whether a failure shows that nothing listens: the engine has ended, and does not hang."""
    return cause in _ENDING_CAUSES


def _ignore() -> None:
    """Ignores that a record begins; the default of `on_begin`."""
