"""Refuses requests that crash engines.

A body is refused for a while after two crashes in sequence. One engine crashed on it, it was sent
to another one *then*, and that engine crashed too. For that time the body reaches no engine,
however often it is sent.

- Copies that were in flight at the same moment prove nothing: a popular prompt is on every engine
  that crashes.
- A response proves that the body is harmless, also one to an older copy.

Only keyed fingerprints are kept, limited in number and time. A body is hashed only if a suspect has
the same length, or if it is released before its end is known, as in streams.

Why: a request that crashes an engine could take down a fleet if it is retried.

Why XXH3 with 128 bits: the hash must be fast. It is not cryptographic. An attacker with a collision
could have one body refused instead of another, but must crash two engines first.
"""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

import xxhash

from fairlead.limits import Limits

_LENGTH_BYTES = 8
_MAX_CRASHES = 8
QUARANTINED_FINGERPRINTS: Final = 1_024
"""Limit: fingerprints of requests that crashed engines."""


class _Crash:
    """A crash of an instance on the body.

    sent_at: when the instance got the body.
    """

    __slots__ = ("crashed_at", "instance", "sent_at")

    def __init__(self, instance: str, sent_at: float, crashed_at: float) -> None:
        self.instance = instance
        self.sent_at = sent_at
        self.crashed_at = crashed_at

    def is_sequential_with(self, other: "_Crash") -> bool:
        """Whether one of the instances got the body after the other had crashed on it."""
        return self.instance != other.instance and (
            self.sent_at >= other.crashed_at or other.sent_at >= self.crashed_at
        )


class _SuspectBody:
    """A body that engines crashed on; blocked after two crashes in sequence."""

    __slots__ = ("crashes", "is_blocked", "last_crash_at")

    def __init__(self, last_crash_at: float) -> None:
        self.crashes: list[_Crash] = []
        self.is_blocked = False
        self.last_crash_at = last_crash_at

    def add(self, crash: _Crash) -> None:
        """Adds a crash. The first few are kept, since later ones are compared with those."""
        self.is_blocked = self.is_blocked or any(crash.is_sequential_with(known) for known in self.crashes)
        if len(self.crashes) < _MAX_CRASHES:
            self.crashes.append(crash)
        self.last_crash_at = max(self.last_crash_at, crash.crashed_at)


class PoisonRequestGuard:
    """The fingerprints of suspect bodies. Times are monotonic seconds of the machine's clock.

    secret: keys the fingerprints.
    report_crash: called with fingerprint, instance, when it got the body, and the time of the
        crash, so that other workers refuse the same bodies.
    report_cleared: called with fingerprint and time of each suspect that was answered.
    """

    def __init__(
        self,
        secret: bytes,
        limits: Limits,
        report_crash: Callable[[bytes, str, float, float], None] | None = None,
        report_cleared: Callable[[bytes, float], None] | None = None,
        max_fingerprints: int = QUARANTINED_FINGERPRINTS,
    ) -> None:
        self._report_crash = report_crash
        self._report_cleared = report_cleared
        self._seed = int.from_bytes(blake2b(secret, digest_size=8, person=b"quarantine").digest(), "big")
        self._limits = limits
        self._max_fingerprints = max_fingerprints
        self._suspects: OrderedDict[bytes, _SuspectBody] = OrderedDict()
        self._lengths: dict[int, int] = {}

    def may_contain(self, body: bytes) -> bool:
        return len(body) in self._lengths

    def seconds_left(self, body: bytes, now: float) -> float | None:
        """Returns how many more seconds this body is refused; None if it is not."""
        suspect = self._suspects.get(self.fingerprint(body)) if self.may_contain(body) else None
        left = (
            suspect.last_crash_at + self._limits.quarantine_seconds - now
            if suspect is not None and suspect.is_blocked
            else 0.0
        )
        return left if left > 0.0 else None

    def fingerprint(self, body: bytes) -> bytes:
        """Returns the fingerprint of a body; empty for an empty body."""
        if not body:
            return b""
        return len(body).to_bytes(_LENGTH_BYTES, "big") + xxhash.xxh3_128_digest(body, self._seed)

    def on_crash(self, fingerprint: bytes, instance: str, sent_at: float, now: float) -> bool:
        """Records that an instance crashed on a body; returns whether the body is blocked now.

        sent_at: when the instance got the body.
        """
        if not fingerprint:
            return False
        if self._report_crash is not None:
            self._report_crash(fingerprint, instance, sent_at, now)
        return self.on_peer_crash(fingerprint, instance, sent_at, now)

    def on_peer_crash(self, fingerprint: bytes, instance: str, sent_at: float, crashed_at: float) -> bool:
        """Like `on_crash`, for a crash that another worker has reported; reports nothing."""
        suspect = self._remove(fingerprint)
        if suspect is None or self._is_expired(suspect, crashed_at):
            suspect = _SuspectBody(crashed_at)
        suspect.add(_Crash(instance, sent_at, crashed_at))
        self._suspects[fingerprint] = suspect
        length = int.from_bytes(fingerprint[:_LENGTH_BYTES], "big")
        self._lengths[length] = self._lengths.get(length, 0) + 1
        while True:
            oldest = next(iter(self._suspects))
            if len(self._suspects) <= self._max_fingerprints and not self._is_expired(
                self._suspects[oldest], crashed_at
            ):
                return suspect.is_blocked
            self._remove(oldest)

    def on_answered(self, fingerprint: bytes, now: float) -> None:
        if self._remove(fingerprint) is not None and self._report_cleared is not None:
            self._report_cleared(fingerprint, now)

    def on_peer_cleared(self, fingerprint: bytes, answered_at: float) -> None:
        """Like `on_answered`, for an answer that another worker has reported.

        Does nothing if the last crash is later than `answered_at`.
        """
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
