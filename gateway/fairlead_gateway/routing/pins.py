"""Which instance served a conversation last.

A conversation mostly goes on where it was: its prompt begins with what that instance has in its cache, and the mirror finds it there.
Where the client writes the same turns in other bytes (another serializer on another replica of an agent, a field that moved) nothing
is found, and hashing sends the turn to homes that hold nothing. So whoever served a session last is one more candidate for its next
turn, for as long as a tool call or a human takes, and the first of those that cost the same. It is no command: a busy one is left
like any other, and what it holds of the prompt is not guessed.

Gateways tell one another (``fairlead_kvstore.exchange``), so any replica knows. The oldest pins go beyond a number, and those of an
instance with it.
"""

from collections.abc import Collection, Hashable

from fairlead.limits import Limits


class Pins:
    """Instances by session (``RouteRequest.pin``), for a while. Times are monotonic seconds."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.session_pins
        self._seconds = limits.session_pin_seconds
        self._pins: dict[Hashable, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._pins)

    def put(self, pin: Hashable, instance: str, now: float) -> None:
        """A turn of the session was sent there."""
        pins = self._pins
        if pin in pins:
            del pins[pin]  # the order is by age
        elif len(pins) >= self._most:
            del pins[next(iter(pins))]
        pins[pin] = (instance, now + self._seconds)

    def forget(self, gone: Collection[str]) -> None:
        """These instances have left, and what they held with them."""
        self._pins = {pin: found for pin, found in self._pins.items() if found[0] not in gone}

    def get(self, pin: Hashable, now: float) -> str | None:
        """Who served the session last; None when that is too long ago or not known."""
        found = self._pins.get(pin)
        if found is None:
            return None
        if found[1] <= now:
            del self._pins[pin]
            return None
        return found[0]
