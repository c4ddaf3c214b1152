"""A full queue refuses the caller that has most in it."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.admission.request_queue import CallerBounds, CallerClass


def filled(max_requests: int, max_bytes: int, *requests: tuple[str, int]) -> CallerBounds:
    bounds = CallerBounds(max_requests, max_bytes)
    for number, (caller, body_bytes) in enumerate(requests):
        bounds.add(f"{caller}{number}", caller, body_bytes)
    return bounds


def test_newcomer_is_refused_when_its_caller_has_most() -> None:
    assert filled(3, 100, ("a", 1), ("a", 1), ("b", 1)).displaced_by("a", 1) is None
    assert filled(2, 100, ("a", 1), ("b", 1)).displaced_by("a", 1) is None


def test_newest_request_of_the_largest_caller_makes_room() -> None:
    assert filled(3, 100, ("a", 1), ("a", 1), ("a", 1)).displaced_by("b", 1) == ["a2"]


def test_bytes_make_room_as_numbers_do() -> None:
    bounds = filled(9, 100, ("a", 40), ("a", 30), ("b", 20))
    assert bounds.displaced_by("b", 10) == ()
    assert bounds.displaced_by("b", 40) == ["a1"]
    assert bounds.displaced_by("b", 60) is None
    assert bounds.displaced_by("a", 11) is None


def test_only_caller_is_refused_at_the_bounds() -> None:
    assert filled(2, 100, ("a", 1), ("a", 1)).displaced_by("a", 1) is None
    assert filled(9, 100).displaced_by("a", 101) is None


def test_lowest_tier_makes_room_first_and_weight_counts_within_a_tier() -> None:
    bounds = CallerBounds(6, 100)
    standard, heavy, batch = CallerClass(1), CallerClass(1, 4.0), CallerClass(2)
    for number, (caller, its) in enumerate([("b", batch), ("s", standard), *[("h", heavy)] * 4]):
        bounds.add(f"{caller}{number}", caller, 1, its)
    assert bounds.displaced_by("b", 1, batch) is None
    assert bounds.displaced_by("new", 1, CallerClass(2)) is None
    assert bounds.displaced_by("s", 1, standard) == ["b0"]
    assert bounds.displaced_by("h", 1, heavy) == ["b0"]
    bounds.remove("b0", "b")
    bounds.add("s9", "s", 1, standard)
    assert bounds.displaced_by("h", 1, heavy) == ["s9"]
    assert bounds.displaced_by("s", 1, standard) is None


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40)), max_size=80), st.integers(1, 12))
def test_no_caller_within_its_fair_share_is_refused(steps: list[tuple[str, int]], max_requests: int) -> None:
    bounds = CallerBounds(max_requests, 10**9)
    queued: dict[str, tuple[str, int]] = {}
    for number, (caller, body_bytes) in enumerate(steps):
        callers = {name for name, _ in queued.values()} | {caller}
        displaced = bounds.displaced_by(caller, body_bytes)
        own = bounds.requests_of(caller) + 1
        assert displaced is not None or own > max_requests / len(callers)
        for request_id in displaced or ():
            victim = queued.pop(request_id)[0]
            assert bounds.requests_of(victim) > max_requests / len(callers)
            bounds.remove(request_id, victim)
        if displaced is not None:
            bounds.add(f"{number}", caller, body_bytes)
            queued[f"{number}"] = caller, body_bytes
        assert bounds.requests == len(queued) <= max_requests
        assert bounds.body_bytes == sum(size for _, size in queued.values())
