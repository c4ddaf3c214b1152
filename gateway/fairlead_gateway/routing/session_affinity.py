"""Session affinity: the instance that served a conversation last is a candidate for its next turn.

That instance is one more candidate for `session_pin_seconds`, and the first of candidates of equal
cost. A busy instance is left like any other, and nothing is assumed about its cache. Gateways share
their sessions (`supervisor.peers`). Beyond a limit, the oldest sessions are dropped.

Why: that instance mostly has the start of the prompt cached. A client may write the same turns in
other bytes (another serializer, a field that moved). Then no prefix matches, and hashing sends the
turn to homes that have nothing cached.
"""

from collections.abc import Collection, Hashable

from fairlead.limits import Limits


class SessionAffinity:
    """The last instance of each session, by `RouteRequest.session_hash`.

    Entries expire. Times are monotonic seconds.
    """

    def __init__(self, limits: Limits) -> None:
        self._max_sessions = limits.session_pins
        self._seconds = limits.session_pin_seconds
        self._instances: dict[Hashable, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._instances)

    def put(self, session_hash: Hashable, instance: str, now: float) -> None:
        """Records the instance that serves a session now."""
        instances = self._instances
        if session_hash in instances:
            del instances[session_hash]  # dictionary order is age
        elif len(instances) >= self._max_sessions:
            del instances[next(iter(instances))]
        instances[session_hash] = (instance, now + self._seconds)

    def forget_instances(self, instances: Collection[str]) -> None:
        """Drops the sessions of these instances."""
        self._instances = {pin: found for pin, found in self._instances.items() if found[0] not in instances}

    def get(self, session_hash: Hashable, now: float) -> str | None:
        """Returns the instance that served the session last; None if unknown or too long ago."""
        found = self._instances.get(session_hash)
        if found is None:
            return None
        if found[1] <= now:
            del self._instances[session_hash]
            return None
        return found[0]
