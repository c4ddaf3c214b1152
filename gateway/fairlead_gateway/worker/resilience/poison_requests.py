"""Requests that kill engines: remembered by a keyed fingerprint of their body, and refused.

One request that takes an engine down would, retried, take down a fleet. A body is refused for a
while when it was sent to one engine, which broke off on it, and *then* to another, which broke off
too, without an answer in between; it never meets a third one, however often it is sent. Copies that
were in flight at the same moment prove nothing: a popular prompt is on every engine that dies. And
an answer proves that it is harmless: it clears the body, also when it comes from a copy that was
sent before.

Only fingerprints are kept, bounded in number and time, and a body is hashed only when a suspect has
the same length, or when it is let go before its end is known, as that of a stream is. So the hash
must be quick: XXH3 of 128 bits, seeded with the installation's secret. It is no cryptographic one;
who found two bodies that it takes for one could have one refused for the other, and must kill two
engines for that.
"""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import xxhash

from fairlead.limits import Limits

_LENGTH_BYTES = 8
_MAX_CRASHES = 8


class _Crash:
    """``instance`` had the body from ``began`` on and broke off ``at`` that time."""

    __slots__ = ("crashed_at", "instance", "sent_at")

    def __init__(self, instance: str, sent_at: float, crashed_at: float) -> None:
        self.instance = instance
        self.sent_at = sent_at
        self.crashed_at = crashed_at

    def is_sequential_with(self, other: "_Crash") -> bool:
        """Whether one of two instances got the body when the other had died of it."""
        return self.instance != other.instance and (
            self.sent_at >= other.crashed_at or other.sent_at >= self.crashed_at
        )


class _SuspectBody:
    """``last`` is the time of the last death; ``held``: two of them speak against the body."""

    __slots__ = ("crashes", "is_blocked", "last_crash_at")

    def __init__(self, last_crash_at: float) -> None:
        self.crashes: list[_Crash] = []
        self.is_blocked = False
        self.last_crash_at = last_crash_at

    def add(self, crash: _Crash) -> None:
        """One more. The first few are enough, since whatever comes later is held against those."""
        self.is_blocked = self.is_blocked or any(crash.is_sequential_with(known) for known in self.crashes)
        if len(self.crashes) < _MAX_CRASHES:
            self.crashes.append(crash)
        self.last_crash_at = max(self.last_crash_at, crash.crashed_at)


class PoisonRequestGuard:
    """Fingerprints of bodies that engines broke off on. ``secret`` keys them. So that the other
    workers of a gateway refuse the same bodies, ``told`` hears of each death (fingerprint,
    instance, since when it had the body, time) and ``told_cleared`` of each suspect that was
    answered (fingerprint, time). Times are seconds of the machine's monotonic clock.
    """

    def __init__(
        self,
        secret: bytes,
        limits: Limits,
        report_crash: Callable[[bytes, str, float, float], None] | None = None,
        report_cleared: Callable[[bytes, float], None] | None = None,
    ) -> None:
        self._report_crash = report_crash
        self._report_cleared = report_cleared
        self._seed = int.from_bytes(blake2b(secret, digest_size=8, person=b"quarantine").digest(), "big")
        self._limits = limits
        self._suspects: OrderedDict[bytes, _SuspectBody] = OrderedDict()
        self._lengths: dict[int, int] = {}

    def may_contain(self, body: bytes) -> bool:
        """Whether the body may be a suspect's: cheap, and nearly always no."""
        return len(body) in self._lengths

    def seconds_left(self, body: bytes, now: float) -> float | None:
        """How long this body is still refused; None when it is not."""
        suspect = self._suspects.get(self.fingerprint(body)) if self.may_contain(body) else None
        left = (
            suspect.last_crash_at + self._limits.quarantine_seconds - now
            if suspect is not None and suspect.is_blocked
            else 0.0
        )
        return left if left > 0.0 else None

    def fingerprint(self, body: bytes) -> bytes:
        """What a body is known by here, for whoever wants to let it go; empty when there is
        none.
        """
        if not body:
            return b""
        return len(body).to_bytes(_LENGTH_BYTES, "big") + xxhash.xxh3_128_digest(body, self._seed)

    def on_crash(self, fingerprint: bytes, instance: str, sent_at: float, now: float) -> bool:
        """An instance broke off while it had, since ``began``, the body with this fingerprint;
        whether that is refused now. Without a fingerprint there is nothing to know the request by.
        """
        if not fingerprint:
            return False
        if self._report_crash is not None:
            self._report_crash(fingerprint, instance, sent_at, now)
        return self.on_peer_crash(fingerprint, instance, sent_at, now)

    def on_peer_crash(self, fingerprint: bytes, instance: str, sent_at: float, crashed_at: float) -> bool:
        """The same, of a sibling's request."""
        suspect = self._remove(fingerprint)
        if suspect is None or self._is_expired(suspect, crashed_at):
            suspect = _SuspectBody(crashed_at)
        suspect.add(_Crash(instance, sent_at, crashed_at))
        self._suspects[fingerprint] = suspect
        length = int.from_bytes(fingerprint[:_LENGTH_BYTES], "big")
        self._lengths[length] = self._lengths.get(length, 0) + 1
        while True:
            oldest = next(iter(self._suspects))
            if len(self._suspects) <= self._limits.quarantined_fingerprints and not self._is_expired(
                self._suspects[oldest], crashed_at
            ):
                return suspect.is_blocked
            self._remove(oldest)

    def on_answered(self, fingerprint: bytes, now: float) -> None:
        """An engine answered the body with this fingerprint to the end: it is harmless."""
        if self._remove(fingerprint) is not None and self._report_cleared is not None:
            self._report_cleared(fingerprint, now)

    def on_peer_cleared(self, fingerprint: bytes, answered_at: float) -> None:
        """The same, of a sibling's request; what an engine has died of since stays."""
        suspect = self._suspects.get(fingerprint)
        if suspect is not None and suspect.last_crash_at <= answered_at:
            self._remove(fingerprint)

    def _is_expired(self, suspect: _SuspectBody, now: float) -> bool:
        return suspect.last_crash_at + self._limits.quarantine_seconds <= now

    def _remove(self, fingerprint: bytes) -> _SuspectBody | None:
        suspect = self._suspects.pop(fingerprint, None)
        if suspect is not None:
            length = int.from_bytes(fingerprint[:_LENGTH_BYTES], "big")
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]
        return suspect

    def __len__(self) -> int:
        return len(self._suspects)
