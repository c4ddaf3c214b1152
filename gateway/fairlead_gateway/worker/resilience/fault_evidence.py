"""Evidence that the failures of an instance are its own, and not those of one caller's requests.

A request can fail on every instance that gets it. So failures that depend on the request count from
two sources on: two callers, or two bodies if no other caller had an answer from the instance
lately. A body that another instance has answered is harmless, so each of its failures is a source.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from fairlead_gateway.caller_key import CallerKey

REQUEST_INDEPENDENT_CAUSES: Final = frozenset({"refused", "connect-timeout", "gone", "tls"})
"""Causes of failures that depend on no request."""
_MAX_REMEMBERED: Final = 8


class FaultSource(NamedTuple):
    """The request that failed.

    fingerprint: of its body.
    is_harmless: another instance has answered it.
    """

    caller: CallerKey
    fingerprint: bytes
    is_harmless: bool = False


class FaultEvidence:
    """The sources of several failures of one instance."""

    __slots__ = ("_bodies", "_callers", "_harmless_count", "_is_independent_of_requests")

    def __init__(self) -> None:
        self._callers: set[CallerKey] = set()
        self._bodies: set[bytes] = set()
        self._harmless_count = 0
        self._is_independent_of_requests = False

    def add(self, source: FaultSource | None) -> None:
        """Adds a failure.

        source: None if the failure does not depend on the request, such as a refused connection.
        """
        if source is None:
            self._is_independent_of_requests = True
            return
        if len(self._callers) < _MAX_REMEMBERED:
            self._callers.add(source.caller)
        if source.is_harmless:
            self._harmless_count += 1
        elif len(self._bodies) < _MAX_REMEMBERED:
            self._bodies.add(source.fingerprint)

    def is_sufficient(self, min_sources: int, answered: Collection[CallerKey]) -> bool:
        """Whether the failures have enough sources to count against the instance.

        answered: the callers that had an answer from the instance lately.
        """
        if self._is_independent_of_requests or len(self._callers) >= min_sources:
            return True
        if any(caller not in self._callers for caller in answered):
            return False
        return len(self._bodies) + self._harmless_count >= min_sources
