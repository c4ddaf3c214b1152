"""The replica log: what gateways write, and what readers make of several logs."""

from fairlead.fleet.model import Fleet, Instance, InstanceState
from fairlead.usage.replica_log import (
    ReplicaLine,
    ReplicaLog,
    ReplicaSpan,
    ReplicaSpans,
    ReplicaView,
    replica_seconds,
    replicas_of,
)

MIDNIGHT = 20_000 * 86_400
READY = ReplicaView("x/tiny", "main", "Ready", 7)
STARTING = ReplicaView("x/tiny", "main", "Starting", 7)


def spans(lines: list[ReplicaLine]) -> list[ReplicaSpan]:
    reader = ReplicaSpans()
    for line in lines:
        reader.add(line)
    reader.close()
    return reader.spans


def test_only_changes_and_heartbeats_are_written() -> None:
    log = ReplicaLog(60)
    assert log.observe(100, {"a": STARTING}) == [ReplicaLine(100, True, {"a": STARTING})]
    assert log.observe(110, {"a": STARTING}) == [ReplicaLine(110)]
    assert log.observe(120, {"a": READY, "b": STARTING}) == [ReplicaLine(120, False, {"a": READY, "b": STARTING})]
    assert log.observe(130, {"b": STARTING}) == [ReplicaLine(130, False, {}, ["a"])]
    assert log.observe(125, {}) == []


def test_spans_end_with_a_change_or_the_last_heartbeat() -> None:
    log = ReplicaLog(60)
    lines = [*log.observe(100, {"a": STARTING}), *log.observe(120, {"a": READY}), *log.observe(150, {"a": READY})]
    assert spans(lines) == [ReplicaSpan("a", 100, 120, STARTING), ReplicaSpan("a", 120, 150, READY)]


def test_nothing_is_counted_while_a_gateway_was_away() -> None:
    log = ReplicaLog(60)
    lines = [*log.observe(100, {"a": READY}), *log.observe(110, {"a": READY}), *log.observe(500, {"a": READY})]
    assert lines[-1].is_first
    assert spans([*lines, *log.observe(520, {"a": READY})]) == [
        ReplicaSpan("a", 100, 110, READY),
        ReplicaSpan("a", 500, 520, READY),
    ]


def test_each_day_has_its_own_lines() -> None:
    log = ReplicaLog(60)
    lines = [*log.observe(MIDNIGHT - 5, {"a": READY}), *log.observe(MIDNIGHT + 5, {}), *log.observe(MIDNIGHT + 9, {})]
    by_day: dict[str, list[ReplicaLine]] = {}
    for line in lines:
        by_day.setdefault(line.day, []).append(line)
    first, second = by_day.values()
    assert spans(first) == [ReplicaSpan("a", MIDNIGHT - 5, MIDNIGHT, READY)]
    assert spans(second) == [ReplicaSpan("a", MIDNIGHT, MIDNIGHT + 5, READY)]
    exactly = ReplicaLog(60)
    exactly.observe(MIDNIGHT - 5, {"a": READY})
    assert exactly.observe(MIDNIGHT, {"b": READY}) == [ReplicaLine(MIDNIGHT), ReplicaLine(MIDNIGHT, True, {"b": READY})]


def test_a_second_that_several_gateways_saw_counts_once() -> None:
    seen = [ReplicaSpan("a", 0, 100, READY), ReplicaSpan("a", 40, 160, READY), ReplicaSpan("b", 0, 10, READY)]
    assert replica_seconds([*seen, *seen]) == {("1970-01-01", "x/tiny", "main", "Ready", 7): 170}


def test_gateways_that_disagree_count_one_state() -> None:
    seen = [ReplicaSpan("a", 0, 100, STARTING), ReplicaSpan("a", 90, 120, READY)]
    seconds_by_state = {state: seconds for (_, _, _, state, _), seconds in replica_seconds(seen).items()}
    assert seconds_by_state == {"Starting": 90, "Ready": 30}


def test_ranks_of_a_replica_count_as_one() -> None:
    def rank(number: int, state: InstanceState) -> Instance:
        return Instance(
            f"pod/8000/{number}", "x", "tiny", "main", "http://a:1", dp_rank=number, state=state,
            replica_nano_usd_per_hour=7,
        )  # fmt: skip

    instances = {"x/tiny": (rank(0, InstanceState.STARTING), rank(1, InstanceState.READY))}
    assert replicas_of(Fleet(instances=instances)) == {"pod/8000": READY}
