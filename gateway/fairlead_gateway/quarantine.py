"""Requests that kill engines: remembered by a keyed fingerprint of their body, and refused.

One request that takes an engine down would, retried, take down a fleet. A body on which engines broke off on two different
instances, without an answer in between, is refused for a while; it never meets a third one, however often it is sent. Only
fingerprints are kept, bounded in number and time, and nothing is computed while there are none.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from fairlead.limits import Limits

_DEATHS = 2


@dataclass(slots=True)
class _Suspect:
    until: float
    instances: set[str] = field(default_factory=set)


class Quarantine:
    """Fingerprints of bodies that engines broke off on. ``secret`` keys them; ``told`` hears of each death (fingerprint, instance),
    so that the other workers of a gateway refuse the same body."""

    def __init__(self, secret: bytes, limits: Limits, told: Callable[[bytes, str], None] | None = None) -> None:
        self._told = told
        self._key = blake2b(secret, digest_size=32).digest()
        self._limits = limits
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()

    def seconds_left(self, body: bytes, now: float) -> float | None:
        """How long this body is still refused; None when it is not."""
        suspect = self._suspects.get(self.fingerprint(body)) if self._suspects else None
        if suspect is None or len(suspect.instances) < _DEATHS or suspect.until <= now:
            return None
        return suspect.until - now

    def fingerprint(self, body: bytes) -> bytes:
        """What a body is known by here, for whoever wants to let it go; empty when there is none."""
        return blake2b(body, key=self._key, digest_size=16).digest() if body else b""

    def died(self, print_: bytes, instance: str, now: float) -> None:
        """An instance broke off while it had the body with this fingerprint. Without one there is nothing to know the request by."""
        if not print_:
            return
        self.heard(print_, instance, now)
        if self._told is not None:
            self._told(print_, instance)

    def heard(self, print_: bytes, instance: str, now: float) -> None:
        """An instance broke off while it had the body with this fingerprint."""
        suspect = self._suspects.pop(print_, None)
        if suspect is None or suspect.until <= now:
            suspect = _Suspect(0.0)
        suspect.instances.add(instance)
        suspect.until = now + self._limits.quarantine_seconds
        self._suspects[print_] = suspect
        while len(self._suspects) > self._limits.quarantine or next(iter(self._suspects.values())).until <= now:
            self._suspects.popitem(last=False)

    def answered(self, print_: bytes) -> None:
        """An engine answered the body with this fingerprint to the end: it is harmless."""
        self._suspects.pop(print_, None)

    def __len__(self) -> int:
        return len(self._suspects)
