"""Requests that kill engines: remembered by a keyed fingerprint of their body, and refused.

One request that takes an engine down would, retried, take down a fleet. A body is refused for a while when it was sent to one
engine, which broke off on it, and *then* to another, which broke off too, without an answer in between; it never meets a third
one, however often it is sent. Copies that were in flight at the same moment prove nothing: a popular prompt is on every
engine that dies. And an answer proves that it is harmless: it clears the body, also when it comes from a copy that was sent before.

Only fingerprints are kept, bounded in number and time, and a body is hashed only when a suspect has the same length, or when it is
let go before its end is known, as that of a stream is. So the hash must be quick: XXH3 of 128 bits, seeded with the installation's
secret. It is no cryptographic one; who found two bodies that it takes for one could have one refused for the other, and must kill two
engines for that.
"""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import xxhash

from fairlead.limits import Limits

_LENGTH_BYTES = 8
_DEATHS_KEPT = 8


class _Death:
    """``instance`` had the body from ``began`` on and broke off ``at`` that time."""

    __slots__ = ("at", "began", "instance")

    def __init__(self, instance: str, began: float, at: float) -> None:
        self.instance = instance
        self.began = began
        self.at = at

    def one_after_the_other(self, other: "_Death") -> bool:
        """Whether one of two instances got the body when the other had died of it."""
        return self.instance != other.instance and (self.began >= other.at or other.began >= self.at)


class _Suspect:
    """``last`` is the time of the last death; ``held``: two of them speak against the body."""

    __slots__ = ("deaths", "held", "last")

    def __init__(self, last: float) -> None:
        self.deaths: list[_Death] = []
        self.held = False
        self.last = last

    def add(self, death: _Death) -> None:
        """One more. The first few are enough, since whatever comes later is held against those."""
        self.held = self.held or any(death.one_after_the_other(known) for known in self.deaths)
        if len(self.deaths) < _DEATHS_KEPT:
            self.deaths.append(death)
        self.last = max(self.last, death.at)


class Quarantine:
    """Fingerprints of bodies that engines broke off on. ``secret`` keys them. So that the other workers of a gateway refuse the
    same bodies, ``told`` hears of each death (fingerprint, instance, since when it had the body, time) and ``told_cleared`` of
    each suspect that was answered (fingerprint, time). Times are seconds of the machine's monotonic clock."""

    def __init__(
        self,
        secret: bytes,
        limits: Limits,
        told: Callable[[bytes, str, float, float], None] | None = None,
        told_cleared: Callable[[bytes, float], None] | None = None,
    ) -> None:
        self._told = told
        self._told_cleared = told_cleared
        self._seed = int.from_bytes(blake2b(secret, digest_size=8, person=b"quarantine").digest(), "big")
        self._limits = limits
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()
        self._lengths: dict[int, int] = {}

    def knows(self, body: bytes) -> bool:
        """Whether the body may be a suspect's: cheap, and nearly always no."""
        return len(body) in self._lengths

    def seconds_left(self, body: bytes, now: float) -> float | None:
        """How long this body is still refused; None when it is not."""
        suspect = self._suspects.get(self.fingerprint(body)) if self.knows(body) else None
        left = suspect.last + self._limits.quarantine_seconds - now if suspect is not None and suspect.held else 0.0
        return left if left > 0.0 else None

    def fingerprint(self, body: bytes) -> bytes:
        """What a body is known by here, for whoever wants to let it go; empty when there is none."""
        if not body:
            return b""
        return len(body).to_bytes(_LENGTH_BYTES, "big") + xxhash.xxh3_128_digest(body, self._seed)

    def died(self, print_: bytes, instance: str, began: float, now: float) -> bool:
        """An instance broke off while it had, since ``began``, the body with this fingerprint; whether that is refused now.
        Without a fingerprint there is nothing to know the request by."""
        if not print_:
            return False
        if self._told is not None:
            self._told(print_, instance, began, now)
        return self.heard(print_, instance, began, now)

    def heard(self, print_: bytes, instance: str, began: float, at: float) -> bool:
        """The same, of a sibling's request."""
        suspect = self._forget(print_)
        if suspect is None or self._over(suspect, at):
            suspect = _Suspect(at)
        suspect.add(_Death(instance, began, at))
        self._suspects[print_] = suspect
        length = int.from_bytes(print_[:_LENGTH_BYTES], "big")
        self._lengths[length] = self._lengths.get(length, 0) + 1
        while True:
            oldest = next(iter(self._suspects))
            if len(self._suspects) <= self._limits.quarantine and not self._over(self._suspects[oldest], at):
                return suspect.held
            self._forget(oldest)

    def answered(self, print_: bytes, now: float) -> None:
        """An engine answered the body with this fingerprint to the end: it is harmless."""
        if self._forget(print_) is not None and self._told_cleared is not None:
            self._told_cleared(print_, now)

    def cleared(self, print_: bytes, at: float) -> None:
        """The same, of a sibling's request; what an engine has died of since stays."""
        suspect = self._suspects.get(print_)
        if suspect is not None and suspect.last <= at:
            self._forget(print_)

    def _over(self, suspect: _Suspect, now: float) -> bool:
        return suspect.last + self._limits.quarantine_seconds <= now

    def _forget(self, print_: bytes) -> _Suspect | None:
        suspect = self._suspects.pop(print_, None)
        if suspect is not None:
            length = int.from_bytes(print_[:_LENGTH_BYTES], "big")
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]
        return suspect

    def __len__(self) -> int:
        return len(self._suspects)
