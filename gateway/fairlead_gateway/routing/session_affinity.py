"""Which instance served a conversation last.

A conversation mostly goes on where it was: its prompt begins with what that instance has in its cache, and the mirror finds it there.
Where the client writes the same turns in other bytes (another serializer on another replica of an agent, a field that moved) nothing
is found, and hashing sends the turn to homes that hold nothing. So whoever served a session last is one more candidate for its next
turn, for as long as a tool call or a human takes, and the first of those that cost the same. It is no command: a busy one is left
like any other, and what it holds of the prompt is not guessed.

Gateways tell one another (``fairlead_gateway.supervisor.peers``), so any replica knows. The oldest pins go beyond a
number, and those of an
instance with it.
"""

from collections.abc import Collection, Hashable

from fairlead.limits import Limits


class SessionAffinity:
    """Instances by session (``RouteRequest.pin``), for a while. Times are monotonic seconds."""

    def __init__(self, limits: Limits) -> None:
        self._max_sessions = limits.session_pins
        self._seconds = limits.session_pin_seconds
        self._instances: dict[Hashable, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._instances)

    def put(self, session_hash: Hashable, instance: str, now: float) -> None:
        """A turn of the session was sent there."""
        instances = self._instances
        if session_hash in instances:
            del instances[session_hash]  # the order is by age
        elif len(instances) >= self._max_sessions:
            del instances[next(iter(instances))]
        instances[session_hash] = (instance, now + self._seconds)

    def forget_instances(self, instances: Collection[str]) -> None:
        """These instances have left, and what they held with them."""
        self._instances = {pin: found for pin, found in self._instances.items() if found[0] not in instances}

    def get(self, session_hash: Hashable, now: float) -> str | None:
        """Who served the session last; None when that is too long ago or not known."""
        found = self._instances.get(session_hash)
        if found is None:
            return None
        if found[1] <= now:
            del self._instances[session_hash]
            return None
        return found[0]
