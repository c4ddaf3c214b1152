"""The decision log keeps the newest requests complete, and nothing else."""

import random
from collections import OrderedDict

from fairlead.decision import Decision, DecisionText
from fairlead_gateway.routes.target_choice import RouteDecision
from fairlead_gateway.telemetry.decision_log import (
    FAILED,
    REFUSED_REQUESTS,
    SLOW,
    SLOWEST_REQUESTS,
    DecisionLog,
    DecisionRecord,
)
from fairlead_testing.gateway.decision_view import append_decision
from fairlead_testing.gateway.running_gateway import make_outcome


def _record(
    request_id: str,
    attempt: int = 1,
    model: str = "default/tiny",
    client_id: str | None = None,
    caller: str | None = None,
) -> DecisionRecord:
    decision = Decision("a/1/0", "affinity", DecisionText("home"))
    record = DecisionRecord(request_id, 1.0, model, decision, attempt, 100.0, caller)
    record.client_id = client_id
    return record


def test_the_oldest_request_leaves_when_the_log_is_full() -> None:
    log = DecisionLog(2)
    for name in ("r1", "r2", "r3"):
        append_decision(log, _record(name))
    assert log.find("r1") == []
    assert [logged.latest.request_id for logged in log.latest(10)] == ["r3", "r2"]


def test_a_retry_joins_the_choices_of_its_request() -> None:
    log = DecisionLog(2)
    append_decision(log, _record("r1"))
    append_decision(log, _record("r1", attempt=2))
    assert len(log) == 1
    assert [record.attempt for record in log.latest(1)[0].records] == [1, 2]


def test_a_reused_request_id_starts_a_new_entry() -> None:
    log = DecisionLog(4)
    for name in ("same", "other", "same"):
        append_decision(log, _record(name))
    assert [logged.latest.request_id for logged in log.latest(9)] == ["same", "other"]
    assert len(log.latest(9)[0].records) == 1


def test_an_outcome_is_added_to_its_request_and_one_without_a_request_is_ignored() -> None:
    log = DecisionLog(4)
    append_decision(log, _record("r1"))
    log.complete(make_outcome("r1", "default/tiny", "a/1/0", 200, None, 1.0, 2.0))
    log.complete(make_outcome("long-gone", "default/tiny", None, 503, "no-engine", 1.0, 2.0))
    [entry] = log.find("r1")
    assert (entry.status, entry.has_ended, len(entry.records)) == (200, True, 1)


def test_the_outcome_at_a_fallback_has_the_decisions_of_all_models() -> None:
    log = DecisionLog(4)
    first, last = make_outcome("r1", "default/tiny"), make_outcome("r1", "default/big")
    log.append(_record("r1", client_id="mine"), first)
    append_decision(log, _record("r2"))
    assert log.find("r1") == [first]
    log.append(_record("r1", attempt=2, model="default/big", client_id="mine"), last)
    assert not log.find("r1")[0].has_ended
    log.complete(last)
    assert [logged.request_id for logged in log.latest(9)] == ["r2", "r1"]
    for name in ("r1", "mine"):
        [entry] = log.find(name)
        assert entry is last
        assert (entry.has_ended, [record.model_key for record in entry.records]) == (
            True,
            ["default/tiny", "default/big"],
        )


def test_the_last_decisions_of_one_model_are_found_among_others() -> None:
    log = DecisionLog(10)
    for n in range(6):
        append_decision(log, _record(f"r{n}", model=f"default/m{n % 2}"))
    assert [logged.latest.request_id for logged in log.latest(2, "default/m0")] == ["r4", "r2"]


def test_the_last_decisions_of_a_route_are_found_whatever_their_model_is() -> None:
    log = DecisionLog(10)
    for n in range(4):
        record = _record(f"r{n}", model=f"default/m{n % 2}")
        if n:
            record.route = RouteDecision("assistant", "default/assistant", record.model_key, "session", None, (1, 2))
        append_decision(log, record)
    assert [logged.latest.request_id for logged in log.latest(9, "default/assistant")] == ["r3", "r2", "r1"]
    assert [logged.latest.request_id for logged in log.latest(9, "default/m0")] == ["r2", "r0"]


def test_the_log_always_holds_the_newest_ids_each_where_it_was_used_last() -> None:
    draw = random.Random(3)
    log, wanted = DecisionLog(5), OrderedDict[str, None]()
    for _ in range(500):
        name = f"r{draw.randrange(9)}"
        append_decision(log, _record(name))
        wanted.pop(name, None)
        wanted[name] = None
        if len(wanted) > 5:
            wanted.popitem(last=False)
        assert [logged.latest.request_id for logged in log.latest(9)] == [*reversed(wanted)]
        assert len(log) == len(wanted)


def test_a_client_cannot_replace_the_entry_of_another_request_by_its_id() -> None:
    log = DecisionLog(3)
    for name in ("r1", "r2"):
        append_decision(log, _record(name, client_id="mine"))
    append_decision(log, _record("r3", client_id="r1"))
    assert [logged.latest.request_id for logged in log.latest(9)] == ["r3", "r2", "r1"]
    for asked, expected in (("r1", "r1"), ("r2", "r2"), ("mine", "r2")):
        [entry] = log.find(asked)
        assert entry.latest.request_id == expected


def test_the_ids_of_clients_leave_the_log_with_their_requests() -> None:
    log = DecisionLog(1)
    append_decision(log, _record("r1", client_id="a"))
    append_decision(log, _record("r2", client_id="b"))
    append_decision(log, _record("r3"))
    assert log.find("a") == log.find("b") == []
    assert log._by_client_id == {}


def _ids(log: DecisionLog, request_id: str, *tenants: str) -> list[str]:
    return [entry.latest.request_id for entry in log.find(request_id, frozenset(tenants) if tenants else None)]


def test_a_tenant_finds_its_own_requests_only_whatever_ids_others_choose() -> None:
    log = DecisionLog(9)
    append_decision(log, _record("r1", client_id="job-7", caller="acme"))
    append_decision(log, _record("r2", client_id="job-7", caller="evil"))
    append_decision(log, _record("r3", client_id="r1", caller="evil"))
    assert _ids(log, "job-7", "acme") == ["r1"]
    assert _ids(log, "job-7", "evil") == ["r2"]
    assert _ids(log, "job-7") == ["r1", "r2"]
    assert _ids(log, "r1", "acme") == ["r1"]
    assert _ids(log, "r1", "evil") == ["r3"]  # its own, by the id that it chose
    assert _ids(log, "r1") == ["r1"]
    assert _ids(log, "r2", "acme") == []
    assert [entry.latest.request_id for entry in log.latest(9, None, {"acme"})] == ["r1"]


def test_requests_without_an_api_key_belong_to_no_tenant() -> None:
    log = DecisionLog(9)
    append_decision(log, _record("r1", client_id="mine"))
    assert _ids(log, "r1", "acme") == _ids(log, "mine", "acme") == []
    assert _ids(log, "mine") == ["r1"]


def _end(log: DecisionLog, name: str, ended_at: float, waited: float = 0.1, status: int = 200) -> None:
    """Adds a stream that has ended."""
    record = _record(name, client_id=f"client-{name}")
    outcome = make_outcome(name, record.model_key, "a/1/0", status, None if status < 400 else "timeout", ended_at - 1.0)
    outcome.duration_seconds, outcome.ttft_seconds = 1.0, waited
    log.append(record, outcome)
    log.complete(outcome)


def _kind(log: DecisionLog, kind: str, count: int = 9) -> list[str]:
    return [entry.request_id for entry in log.latest(count, kind=kind)]


def test_failed_requests_stay_longer_than_others_with_the_ids_of_their_clients() -> None:
    log = DecisionLog(2)
    _end(log, "bad", 1.0, status=502)
    for number in range(2_000):
        _end(log, f"r{number}", 300.0 + number, waited=9.0 if number == 0 else 0.1)
    assert _kind(log, FAILED) == ["bad"]
    assert _ids(log, "bad") == _ids(log, "client-bad") == ["bad"]
    assert _ids(log, "r0") == _ids(log, "client-r0") == ["r0"]  # among the slowest of its five minutes
    assert _ids(log, "r100") == _ids(log, "client-r100") == []


def test_refused_requests_displace_no_failed_ones() -> None:
    log = DecisionLog(2)
    _end(log, "bad", 1.0, status=502)
    for number in range(2 * REFUSED_REQUESTS):
        _end(log, f"refused-{number}", 2.0 + number, status=429)
    assert len(_kind(log, FAILED, 9_999)) == REFUSED_REQUESTS + 1
    assert _kind(log, FAILED, 9_999)[-1] == "bad"


def test_the_slowest_of_each_five_minutes_are_kept_for_an_hour() -> None:
    draw = random.Random(5)
    log, waits = DecisionLog(3), dict[str, tuple[float, float]]()
    for number in range(30_000):
        name, at, waited = f"r{number}", number * 0.2, draw.expovariate(1.0)
        waits[name] = (at, waited)
        _end(log, name, at, waited)
    first = 30_000 * 0.2 - 13 * 300.0  # twelve whole windows, and the present one
    wanted = sorted(waits, key=lambda name: -waits[name][1])
    last_hour = [name for name in wanted if waits[name][0] >= first]
    assert _kind(log, SLOW, 20) == last_hour[:20]
    assert len(_kind(log, SLOW, 9_999)) == 13 * SLOWEST_REQUESTS
    assert len(log._by_client_id) <= 13 * SLOWEST_REQUESTS + 3


def test_a_clock_that_jumps_back_keeps_the_log_bounded() -> None:
    log = DecisionLog(1)
    for number in range(4_000):
        _end(log, f"r{number}", 1e9 - 600.0 * number)
    assert len(_kind(log, SLOW, 9_999)) <= 13 * SLOWEST_REQUESTS
    assert len(log._by_client_id) <= 13 * SLOWEST_REQUESTS + 1
