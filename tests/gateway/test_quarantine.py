"""What is remembered of requests that kill engines, and what is not."""

from fairlead.limits import Limits
from fairlead_gateway.quarantine import Quarantine

LIMITS = Limits()


def held(limits: Limits = LIMITS) -> Quarantine:
    return Quarantine(b"secret", limits)


def test_two_different_instances_without_an_answer_in_between_hold_a_body() -> None:
    one = held()
    one.died(one.fingerprint(b"poison"), "a", 0.0)
    one.died(one.fingerprint(b"poison"), "a", 1.0)
    assert one.seconds_left(b"poison", 1.0) is None
    one.died(one.fingerprint(b"poison"), "b", 2.0)
    assert one.seconds_left(b"poison", 2.0) == LIMITS.quarantine_seconds
    assert one.seconds_left(b"another", 2.0) is None


def test_a_body_that_is_answered_is_harmless() -> None:
    one = held()
    one.died(one.fingerprint(b"popular"), "a", 0.0)
    one.answered(one.fingerprint(b"popular"))
    one.died(one.fingerprint(b"popular"), "b", 1.0)
    assert one.seconds_left(b"popular", 1.0) is None


def test_it_ends_by_itself_and_counts_anew() -> None:
    one = held()
    one.died(one.fingerprint(b"poison"), "a", 0.0)
    one.died(one.fingerprint(b"poison"), "b", 0.0)
    after = LIMITS.quarantine_seconds + 1
    assert one.seconds_left(b"poison", after) is None
    one.died(one.fingerprint(b"poison"), "c", after)
    assert one.seconds_left(b"poison", after) is None


def test_it_holds_no_more_than_its_limit_and_nothing_that_is_over() -> None:
    one = held(Limits(quarantine=3))
    for number in range(10):
        one.died(one.fingerprint(b"%d" % number), "a", float(number))
    assert len(one) == 3
    one.died(one.fingerprint(b"last"), "a", 10_000.0)
    assert len(one) == 1


def test_requests_without_a_body_are_never_held_since_they_all_look_alike() -> None:
    one = held()
    one.died(one.fingerprint(b""), "a", 0.0)
    one.died(one.fingerprint(b""), "b", 0.0)
    assert one.seconds_left(b"", 0.0) is None
    assert len(one) == 0
