"""The admission policy: requests that are admitted, queued, refused and released."""

from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_gateway.admission.admission_policy import (
    AdmissionAction,
    AdmissionPolicy,
    AdmissionRequest,
    AdmissionVerdict,
)
from fairlead_gateway.admission.kv_capacity import EngineLoad
from fairlead_testing.gateway.caller_overload import admission_request


def engines(*backlogs: float, kv: float | None = None) -> list[EngineLoad]:
    return [EngineLoad(f"e{number}", backlog, 0.3, kv) for number, backlog in enumerate(backlogs)]


def mixed(limits: Limits | None = None) -> AdmissionPolicy:
    """A gate that has seen two objectives."""
    gate = AdmissionPolicy(limits or Limits())
    gate.admit(admission_request("early", objective=4.0), engines(0.0), 0.0)
    gate.admit(admission_request("tight", objective=0.5), engines(0.0), 0.0)
    return gate


def hold(gate: AdmissionPolicy, *ones: AdmissionRequest, now: float = 0.0) -> None:
    for admission in ones:
        assert gate.admit(admission, engines(9.0, 9.0), now).action is AdmissionAction.QUEUE


def test_equal_requests_are_never_queued() -> None:
    gate = AdmissionPolicy(Limits())
    for number in range(50):
        verdict = gate.admit(admission_request(f"r{number}"), engines(30.0, 30.0), 0.1 * number)
        assert (verdict.action, verdict.rule, verdict.full_instances) == (AdmissionAction.ADMIT, "open", frozenset())


def test_where_objectives_differ_busy_engines_are_passed_by_and_full_ones_waited_for() -> None:
    gate = mixed()
    verdict = gate.admit(admission_request("a"), engines(9.0, 0.0), 1.0)
    assert (verdict.action, verdict.full_instances) == (AdmissionAction.ADMIT, {"e0"})
    verdict = gate.admit(admission_request("b", arrival=1.0), engines(9.0, 0.2), 1.0)
    assert verdict.action is AdmissionAction.QUEUE
    assert "all 2 instances are busy" in verdict.reason
    assert gate.release_next(engines(9.0, 0.2), 1.1) is None
    release = gate.release_next(engines(9.0, 0.0), 1.5)
    assert (release.id, release.rule, release.full_instances, len(gate)) == ("b", "deadline", {"e0"}, 0)
    assert release.waited_seconds == pytest.approx(0.5)


def test_a_later_request_does_not_pass_a_queued_one() -> None:
    gate = mixed()
    hold(gate, admission_request("a"))
    assert (gate.admit(admission_request("b"), engines(0.0, 0.0), 0.1).action, len(gate)) == (AdmissionAction.QUEUE, 2)


@pytest.mark.parametrize("other", [{"tenant": "b"}, {"tier": 1}])
def test_a_second_tenant_or_tier_is_a_reason_to_hold(other: dict[str, object]) -> None:
    gate = AdmissionPolicy(Limits())
    assert gate.admit(admission_request("a", tenant="a"), engines(9.0), 0.0).action is AdmissionAction.ADMIT
    assert (
        gate.admit(admission_request("b", **{"tenant": "a", **other}), engines(9.0), 0.0).action
        is AdmissionAction.QUEUE
    )


def test_without_a_ready_engine_a_request_is_queued() -> None:
    gate = AdmissionPolicy(Limits())
    verdict = gate.admit(admission_request("a"), [], 0.0)
    assert (verdict.action, verdict.rule) == (AdmissionAction.QUEUE, "held-starting")
    assert gate.release_next([], 1.0) is None
    assert gate.release_next(engines(0.0), 7.0).id == "a"


def test_memory_that_would_overflow_is_waited_for_and_no_other_is_let_past() -> None:
    gate = AdmissionPolicy(Limits())
    first, big, small = (
        admission_request("first", tokens=600.0),
        admission_request("big", tokens=600.0),
        admission_request("small", tokens=10.0),
    )
    assert gate.admit(first, engines(0.0, kv=1_000.0), 0.0).action is AdmissionAction.ADMIT
    gate.kv_capacity.on_dispatch(first.request, "e0", 600.0, None, 0.0)
    verdict = gate.admit(big, engines(0.0, kv=1_000.0), 0.0)
    assert verdict.action is AdmissionAction.QUEUE
    assert "memory" in verdict.reason
    assert gate.admit(small, engines(0.0, kv=1_000.0), 0.0).action is AdmissionAction.QUEUE
    assert gate.release_next(engines(0.0, kv=1_000.0), 0.5) is None
    gate.on_finish("first", None, 600.0, 20, 1.0)
    assert gate.release_next(engines(0.0, kv=1_000.0), 1.0).id == "big"


def test_unknown_memory_refuses_no_request() -> None:
    gate = AdmissionPolicy(Limits())
    for number in range(40):
        admission = admission_request(f"r{number}", tokens=1e6)
        assert gate.admit(admission, engines(0.0), 0.0).action is AdmissionAction.ADMIT
        gate.kv_capacity.on_dispatch(admission.request, "e0", 1e6, None, 0.0)


def test_only_sheddable_requests_are_refused_and_get_retry_after() -> None:
    gate = mixed()
    hold(gate, *(admission_request(f"r{number}", prefill=0.5) for number in range(20)))
    verdict = gate.admit(admission_request("cheap", sheddable=True), engines(9.0, 9.0), 0.0)
    assert (verdict.action, verdict.rule, verdict.is_shed) == (AdmissionAction.REFUSE, "shed", True)
    assert verdict.retry_after == pytest.approx(10.0 / 2 - 0.9)  # 10 s of work, two engines, 0.9 s to spare
    assert "10" in verdict.reason or "5.0 s" in verdict.reason
    assert gate.admit(admission_request("dear"), engines(9.0, 9.0), 0.0).action is AdmissionAction.QUEUE


def test_the_pace_of_the_line_is_what_was_let_go() -> None:
    gate = mixed()
    hold(gate, *(admission_request(f"r{number}", prefill=0.5, objective=60.0) for number in range(40)))
    for turn in range(1, 21):  # half a second of work in each second
        assert gate.release_next(engines(0.0, 9.0), float(turn)) is not None
    assert gate.expected_wait(0, 2, 20.0) == pytest.approx(20 * 0.5 / 0.5, rel=0.15)


def test_the_queue_is_bounded_in_number_and_bytes() -> None:
    gate = mixed(replace(Limits(), queued_requests=2, queued_bytes=100))
    hold(gate, admission_request("a", body_bytes=60))
    full = gate.admit(admission_request("b", body_bytes=60), engines(9.0), 0.0)
    assert (full.action, full.rule, full.is_shed) == (AdmissionAction.REFUSE, "line-full", False)
    hold(gate, admission_request("c", body_bytes=1))
    assert _refused(gate.admit(admission_request("d"), engines(9.0), 0.0)) == "line-full"
    assert gate.remove("a")
    assert not gate.remove("a")
    hold(gate, admission_request("e", body_bytes=90))


def test_no_request_is_queued_longer_than_the_limit() -> None:
    gate = mixed(replace(Limits(), queue_seconds=10.0))
    hold(gate, admission_request("a", arrival=0.0), admission_request("b", arrival=5.0))
    assert gate.take_expired(2, 9.9) == ()
    ((name, verdict),) = gate.take_expired(2, 10.0)
    assert (name, verdict.rule, verdict.is_shed) == ("a", "held-too-long", False)
    assert len(gate) == 1


def test_a_sheddable_one_is_refused_where_another_would_go_before_all() -> None:
    gate = mixed()
    hold(gate, admission_request("cheap", prefill=0.1, sheddable=True), admission_request("dear", prefill=0.1))
    assert gate.take_expired(2, 2.8) == ()
    ((name, verdict),) = gate.take_expired(2, 3.0)
    assert (name, verdict.rule, verdict.is_shed) == ("cheap", "shed-late", True)


def test_long_prompts_leave_engines_to_short_ones() -> None:
    gate = AdmissionPolicy(Limits())
    for number in range(40):  # half of the work is short
        gate.admit(admission_request(f"s{number}", objective=0.5, prefill=0.1), engines(0.0), 0.1 * number)
        if number % 5 == 0:
            gate.admit(admission_request(f"l{number}", objective=9.0, prefill=0.5), engines(0.0), 0.1 * number)
    busy = engines(0.5, 0.5, 0.0, 0.0)
    verdict = gate.admit(admission_request("long", arrival=4.0, objective=9.0, prefill=0.5), busy, 4.0)
    assert verdict.action is AdmissionAction.QUEUE
    assert "long prompts" in verdict.reason
    assert (
        gate.admit(admission_request("short", arrival=4.0, objective=0.5), busy, 4.0).action is AdmissionAction.QUEUE
    )  # behind the long one
    assert gate.release_next(busy, 4.1).id == "short"
    assert gate.release_next(busy, 4.2) is None
    assert gate.release_next(engines(0.5, 0.0, 0.0, 0.0), 4.3).id == "long"


def test_an_idle_engine_is_reserved_for_the_next_long_prompt() -> None:
    gate = mixed()
    hold(
        gate,
        admission_request("long", objective=4.0, prefill=0.9),
        admission_request("s1", arrival=3.9),
        admission_request("s2", arrival=3.9),
    )
    nearly = engines(0.05, 0.02)
    passing = gate.release_next(nearly, 4.0 - 0.95)
    assert (passing.id, passing.full_instances) == ("s1", {"e1"})  # the emptiest is not filled up again
    assert gate.release_next(engines(0.2, 0.02), 3.06) is None
    emptied = gate.release_next(engines(0.2, 0.0), 3.07)
    assert (emptied.id, emptied.full_instances) == ("long", {"e0"})


def _refused(verdict: AdmissionVerdict) -> str:
    assert verdict.action is AdmissionAction.REFUSE
    return verdict.rule


class CountingTime(float):
    """A time that counts how often it is compared."""

    count = 0

    def __le__(self, other: float) -> bool:
        CountingTime.count += 1
        return float(self) <= other


def test_expiry_costs_the_same_however_many_requests_wait() -> None:
    policy = AdmissionPolicy(replace(Limits(), queue_seconds=60.0))
    for number in range(1_000):
        request = admission_request(f"r{number}", CountingTime(number / 100.0), 5.0, tokens=10.0)
        assert policy.admit(request, [], 10.0).action is AdmissionAction.QUEUE
    CountingTime.count = 0
    assert policy.take_expired(1, 50.0) == ()
    assert CountingTime.count == 1
    assert [name for name, _ in policy.take_expired(1, 60.02)] == ["r0", "r1", "r2"]


def test_loads_are_read_only_where_they_decide() -> None:
    quick, full = AdmissionPolicy(Limits()), AdmissionPolicy(Limits())
    loads = engines(0.0, 9.0)
    for number in range(6):
        tenant = "second" if number >= 3 else "first"
        name, now = f"r{number}", float(number)
        verdict = full.verdict_without_queue(admission_request(name, now, tenant=tenant), loads, now)
        request = admission_request(name, now, tenant=tenant)
        assert quick.admits_at_once(request, now) is (number < 3), "until there are several tenants"
        assert verdict is not None
        if number < 3:
            assert not verdict.full_instances
        else:
            classified = quick.verdict_of_classified(request, loads, now)
            assert classified is not None
            assert classified.full_instances == verdict.full_instances == {"e1"}
    blocked = engines(9.0, 9.0)
    for gate in (quick, full):
        assert gate.enqueue(admission_request("held", 9.0), blocked, 9.0).action is AdmissionAction.QUEUE
    assert not quick.admits_at_once(admission_request("next", 9.0), 9.0)
