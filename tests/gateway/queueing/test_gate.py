"""When a request goes at once, when it is held, when it is refused, and who goes next."""

from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_gateway.queueing.gate import Asked, Engine, Gate, Kind, Verdict
from fairlead_gateway.queueing.order import Waiting
from fairlead_gateway.routing import PrefixChain, RouteRequest


def asked(name: str, arrival: float = 0.0, objective: float = 1.0, own: float = 0.1, **more: object) -> Asked:
    tokens = float(more.pop("tokens", 100.0))  # type: ignore[arg-type]
    sheddable = bool(more.pop("sheddable", False))
    most = more.pop("most", None)
    request = RouteRequest(name, PrefixChain((), (), hash(name)), tokens, most)  # type: ignore[arg-type]
    return Asked(Waiting(name, arrival, objective, own, **more), request, tokens, sheddable=sheddable)  # type: ignore[arg-type]


def engines(*backlogs: float, kv: float | None = None) -> list[Engine]:
    return [Engine(f"e{number}", backlog, 0.3, kv) for number, backlog in enumerate(backlogs)]


def mixed(limits: Limits | None = None) -> Gate:
    """A gate that has seen two objectives."""
    gate = Gate(limits or Limits())
    gate.arrived(asked("early", objective=4.0), engines(0.0), 0.0)
    gate.arrived(asked("tight", objective=0.5), engines(0.0), 0.0)
    return gate


def hold(gate: Gate, *ones: Asked, now: float = 0.0) -> None:
    for one in ones:
        assert gate.arrived(one, engines(9.0, 9.0), now).kind is Kind.HOLD


def test_while_all_want_the_same_nobody_is_held_however_busy_the_engines_are() -> None:
    gate = Gate(Limits())
    for number in range(50):
        verdict = gate.arrived(asked(f"r{number}"), engines(30.0, 30.0), 0.1 * number)
        assert (verdict.kind, verdict.rule, verdict.full) == (Kind.PASS, "open", frozenset())


def test_where_objectives_differ_busy_engines_are_passed_by_and_full_ones_waited_for() -> None:
    gate = mixed()
    verdict = gate.arrived(asked("a"), engines(9.0, 0.0), 1.0)
    assert (verdict.kind, verdict.full) == (Kind.PASS, {"e0"})
    verdict = gate.arrived(asked("b", arrival=1.0), engines(9.0, 0.2), 1.0)
    assert verdict.kind is Kind.HOLD
    assert "all 2 engines are busy" in verdict.reason
    assert gate.release(engines(9.0, 0.2), 1.1) is None
    release = gate.release(engines(9.0, 0.0), 1.5)
    assert release is not None
    assert (release.id, release.rule, release.full, len(gate)) == ("b", "deadline", {"e0"}, 0)
    assert release.waited_seconds == pytest.approx(0.5)


def test_who_comes_later_does_not_pass_who_is_held() -> None:
    gate = mixed()
    hold(gate, asked("a"))
    verdict = gate.arrived(asked("b"), engines(0.0, 0.0), 0.1)
    assert (verdict.kind, len(gate)) == (Kind.HOLD, 2)


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"tier": 1}])
def test_a_second_tenant_or_tier_is_a_reason_to_hold(other: dict[str, object]) -> None:
    gate = Gate(Limits())
    assert gate.arrived(asked("a", tenant="a"), engines(9.0), 0.0).kind is Kind.PASS
    assert gate.arrived(asked("b", **{"tenant": "a", **other}), engines(9.0), 0.0).kind is Kind.HOLD


def test_without_a_ready_engine_it_is_held_until_there_is_one() -> None:
    gate = Gate(Limits())
    verdict = gate.arrived(asked("a"), [], 0.0)
    assert (verdict.kind, verdict.rule) == (Kind.HOLD, "held-starting")
    assert gate.release([], 1.0) is None
    release = gate.release(engines(0.0), 7.0)
    assert release is not None
    assert release.id == "a"


def test_memory_that_would_overflow_is_waited_for_and_no_other_is_let_past() -> None:
    gate = Gate(Limits())
    first, big, small = asked("first", tokens=600.0), asked("big", tokens=600.0), asked("small", tokens=10.0)
    assert gate.arrived(first, engines(0.0, kv=1_000.0), 0.0).kind is Kind.PASS
    gate.memory.sent(first.request, "e0", 600.0, None, 0.0)
    verdict = gate.arrived(big, engines(0.0, kv=1_000.0), 0.0)
    assert verdict.kind is Kind.HOLD
    assert "memory" in verdict.reason
    assert gate.arrived(small, engines(0.0, kv=1_000.0), 0.0).kind is Kind.HOLD
    assert gate.release(engines(0.0, kv=1_000.0), 0.5) is None
    gate.finished("first", None, 600.0, 20, 1.0)
    release = gate.release(engines(0.0, kv=1_000.0), 1.0)
    assert release is not None
    assert release.id == "big"


def test_memory_that_nobody_stated_stops_nobody() -> None:
    gate = Gate(Limits())
    for number in range(40):
        one = asked(f"r{number}", tokens=1e6)
        assert gate.arrived(one, engines(0.0), 0.0).kind is Kind.PASS
        gate.memory.sent(one.request, "e0", 1e6, None, 0.0)


def test_only_sheddable_requests_are_refused_for_their_objective_and_told_when_to_come_back() -> None:
    gate = mixed()
    hold(gate, *(asked(f"r{number}", own=0.5) for number in range(20)))
    verdict = gate.arrived(asked("cheap", sheddable=True), engines(9.0, 9.0), 0.0)
    assert (verdict.kind, verdict.rule, verdict.shed) == (Kind.REFUSE, "shed", True)
    assert verdict.retry_after == pytest.approx(10.0 / 2 - 0.9)  # 10 s of work, two engines, 0.9 s to spare
    assert "10" in verdict.reason or "5.0 s" in verdict.reason
    assert gate.arrived(asked("dear"), engines(9.0, 9.0), 0.0).kind is Kind.HOLD


def test_the_pace_of_the_line_is_what_was_let_go() -> None:
    gate = mixed()
    hold(gate, *(asked(f"r{number}", own=0.5, objective=60.0) for number in range(40)))
    for turn in range(1, 21):  # half a second of work in each second
        assert gate.release(engines(0.0, 9.0), float(turn)) is not None
    assert gate.expected_wait(0, 2, 20.0) == pytest.approx(20 * 0.5 / 0.5, rel=0.15)


def test_the_line_has_limits_of_number_and_bytes() -> None:
    gate = mixed(replace(Limits(), hold_requests=2, hold_bytes=100))
    hold(gate, asked("a", size=60))
    full = gate.arrived(asked("b", size=60), engines(9.0), 0.0)
    assert (full.kind, full.rule, full.shed) == (Kind.REFUSE, "line-full", False)
    hold(gate, asked("c", size=1))
    assert _refused(gate.arrived(asked("d"), engines(9.0), 0.0)) == "line-full"
    assert gate.left("a")
    assert not gate.left("a")
    assert gate.held_bytes == 1
    hold(gate, asked("e", size=90))


def test_nobody_is_held_longer_than_the_limit() -> None:
    gate = mixed(replace(Limits(), hold_seconds=10.0))
    hold(gate, asked("a", arrival=0.0), asked("b", arrival=5.0))
    assert gate.expired(2, 9.9) == []
    ((name, verdict),) = gate.expired(2, 10.0)
    assert (name, verdict.rule, verdict.shed) == ("a", "held-too-long", False)
    assert len(gate) == 1


def test_a_sheddable_one_is_refused_where_another_would_go_before_all() -> None:
    gate = mixed()
    hold(gate, asked("cheap", own=0.1, sheddable=True), asked("dear", own=0.1))
    assert gate.expired(2, 2.8) == []
    ((name, verdict),) = gate.expired(2, 3.0)
    assert (name, verdict.rule, verdict.shed) == ("cheap", "shed-late", True)


def test_long_prompts_leave_engines_to_short_ones() -> None:
    gate = Gate(Limits())
    for number in range(40):  # half of the work is short
        gate.arrived(asked(f"s{number}", objective=0.5, own=0.1), engines(0.0), 0.1 * number)
        if number % 5 == 0:
            gate.arrived(asked(f"l{number}", objective=9.0, own=0.5), engines(0.0), 0.1 * number)
    busy = engines(0.5, 0.5, 0.0, 0.0)
    verdict = gate.arrived(asked("long", arrival=4.0, objective=9.0, own=0.5), busy, 4.0)
    assert verdict.kind is Kind.HOLD
    assert "long prompts" in verdict.reason
    assert gate.arrived(asked("short", arrival=4.0, objective=0.5), busy, 4.0).kind is Kind.HOLD  # behind the long one
    release = gate.release(busy, 4.1)
    assert release is not None
    assert release.id == "short"
    assert gate.release(busy, 4.2) is None
    freed = gate.release(engines(0.5, 0.0, 0.0, 0.0), 4.3)
    assert freed is not None
    assert freed.id == "long"


def test_an_engine_that_has_begun_nothing_is_kept_for_the_long_prompt_whose_turn_it_is() -> None:
    gate = mixed()
    hold(gate, asked("long", objective=4.0, own=0.9), asked("s1", arrival=3.9), asked("s2", arrival=3.9))
    nearly = engines(0.05, 0.02)
    passing = gate.release(nearly, 4.0 - 0.95)
    assert passing is not None
    assert (passing.id, passing.full) == ("s1", {"e1"})  # the emptiest is not filled up again
    assert gate.release(engines(0.2, 0.02), 3.06) is None
    emptied = gate.release(engines(0.2, 0.0), 3.07)
    assert emptied is not None
    assert (emptied.id, emptied.full) == ("long", {"e0"})


def _refused(verdict: Verdict) -> str:
    assert verdict.kind is Kind.REFUSE
    return verdict.rule
