"""The memory of requests that crash engines."""

from fairlead.limits import Limits
from fairlead_gateway.resilience.poison_requests import QUARANTINED_FINGERPRINTS, PoisonRequestGuard

LIMITS = Limits()
TERM = LIMITS.quarantine_seconds


class GuardStage:
    """A quarantine by bodies. ``died`` takes the time that a body was on a crashed instance."""

    def __init__(self, max_fingerprints: int = QUARANTINED_FINGERPRINTS) -> None:
        self.deaths: list[tuple[bytes, str, float, float]] = []
        self.cleared: list[tuple[bytes, float]] = []
        self.inner = PoisonRequestGuard(
            b"secret",
            LIMITS,
            lambda *death: self.deaths.append(death),
            lambda *clearing: self.cleared.append(clearing),
            max_fingerprints,
        )

    def died(self, body: bytes, instance: str, began: float, at: float) -> bool:
        return self.inner.on_crash(self.inner.fingerprint(body), instance, began, at)

    def answered(self, body: bytes, at: float) -> None:
        self.inner.on_answered(self.inner.fingerprint(body), at)

    def left(self, body: bytes, now: float) -> float | None:
        return self.inner.seconds_left(body, now)


def test_a_request_and_its_retry_on_two_instances_hold_a_body() -> None:
    guard = GuardStage()
    assert not guard.died(b"poison", "a", 0.0, 1.0)
    assert not guard.died(b"poison", "a", 1.0, 2.0)
    assert guard.left(b"poison", 2.0) is None
    assert guard.died(b"poison", "b", 2.0, 3.0)
    assert guard.left(b"poison", 3.0) == TERM
    assert guard.left(b"another", 3.0) is None
    assert guard.left(b"p0ison", 3.0) is None


def test_two_copies_in_flight_at_the_same_moment_hold_nothing() -> None:
    guard = GuardStage()
    guard.died(b"popular", "a", 0.0, 10.0)
    assert not guard.died(b"popular", "b", 5.0, 10.1)
    assert not guard.died(b"popular", "c", 9.9, 10.2)
    assert guard.left(b"popular", 11.0) is None
    assert guard.died(b"popular", "d", 10.05, 11.0)  # but this one was sent after a had died of it


def test_in_which_order_deaths_are_heard_does_not_matter() -> None:
    guard = GuardStage()
    guard.died(b"poison", "b", 10.0, 11.0)
    assert guard.died(b"poison", "a", 5.0, 10.0)


def test_body_answered_after_a_crash_is_harmless_also_by_a_copy_sent_before() -> None:
    guard = GuardStage()
    guard.died(b"popular", "a", 0.0, 1.0)
    guard.answered(b"popular", 2.0)
    assert len(guard.inner) == 0
    assert not guard.died(b"popular", "b", 2.0, 3.0)
    guard.died(b"popular", "c", 3.0, 4.0)
    assert guard.left(b"popular", 4.0) == TERM
    guard.answered(b"popular", 5.0)
    assert guard.left(b"popular", 5.0) is None


def test_it_ends_by_itself_and_counts_anew() -> None:
    guard = GuardStage()
    guard.died(b"poison", "a", 0.0, 0.0)
    guard.died(b"poison", "b", 0.0, 0.0)
    after = TERM + 1
    assert guard.left(b"poison", after) is None
    guard.died(b"poison", "c", after, after)
    assert guard.left(b"poison", after) is None


def test_it_holds_no_more_than_its_limit_and_nothing_that_is_over() -> None:
    guard = GuardStage(3)
    for number in range(10):
        guard.died(b"%d" % number, "a", 0.0, float(number))
    assert len(guard.inner) == 3
    guard.died(b"last", "a", 10_000.0, 10_000.0)
    assert len(guard.inner) == 1


def test_popular_body_in_flight_on_every_engine_takes_no_more_memory() -> None:
    guard = GuardStage()
    for number in range(1_000):
        guard.died(b"popular", f"e-{number}", 0.0, 1.0 + number)
    (suspect,) = guard.inner._suspects.values()
    assert len(suspect.crashes) < 10


def test_bodies_of_another_length_are_not_even_hashed() -> None:
    guard = GuardStage()
    assert not guard.inner.may_contain(b"poison")
    guard.died(b"poison", "a", 0.0, 0.0)
    guard.died(b"murder", "a", 0.0, 0.0)
    assert guard.inner.may_contain(b"pigeon")
    assert not guard.inner.may_contain(b"pigeons")
    guard.answered(b"poison", 1.0)
    assert guard.inner.may_contain(b"pigeon")
    guard.answered(b"murder", 1.0)
    assert not guard.inner.may_contain(b"pigeon")


def test_requests_without_a_body_are_never_held_since_they_all_look_alike() -> None:
    guard = GuardStage()
    guard.died(b"", "a", 0.0, 0.0)
    guard.died(b"", "b", 0.0, 0.0)
    assert guard.left(b"", 0.0) is None
    assert len(guard.inner) == 0
    assert not guard.deaths


def test_siblings_are_told_of_deaths_and_of_answers_that_clear() -> None:
    guard, other = GuardStage(), GuardStage()
    guard.died(b"poison", "a", 0.0, 1.0)
    guard.died(b"poison", "b", 1.0, 2.0)
    for death in guard.deaths:
        other.inner.on_peer_crash(*death)
    assert other.left(b"poison", 2.0) == TERM
    assert not other.deaths
    other.inner.on_peer_cleared(guard.inner.fingerprint(b"poison"), 1.5)  # before b died of it
    assert other.left(b"poison", 2.0) == TERM
    guard.answered(b"another", 3.0)
    assert not guard.cleared
    guard.answered(b"poison", 3.0)
    for clearing in guard.cleared:
        other.inner.on_peer_cleared(*clearing)
    assert other.left(b"poison", 3.0) is None
    assert len(guard.cleared) == 1
