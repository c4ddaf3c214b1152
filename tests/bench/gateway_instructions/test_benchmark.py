"""The count of instructions of a request, one of a tenant too."""

import socket

import pytest

from fairlead_bench.gateway_instructions import stream_continuation, tenant_requests
from fairlead_bench.gateway_instructions.benchmark import DECISION, rows
from fairlead_bench.gateway_instructions.counted_gateway import instructions_of, is_source
from fairlead_bench.gateway_instructions.instruction_table import standard_errors
from fairlead_bench.gateway_instructions.scenarios import (
    CHUNK,
    STREAM,
    Call,
    cost_per_unit,
    cost_without_keys,
    read_request,
)
from fairlead_bench.gateway_instructions.tenant_requests import (
    LIMITED,
    NAME,
    NO_KEYS,
    STRICT,
    TENANT,
    WITH_KEY,
    callers_by_unit,
)
from fairlead_bench.results import load_goals, meets_goal
from fairlead_testing.yaml_documents import load_document

TURNS = {"plain": 10, "short_streams": 10, "long_streams": 10, "retried": 10, "waiting": 10, "handed_off": 10}
TURNS |= {"messages": 10, "responses": 10}


def test_a_dump_holds_its_instructions() -> None:
    assert instructions_of(["# callgrind format\n", "events: Ir Dr\n", "summary: 160 50\n", "12 30 10\n"]) == 160
    with pytest.raises(ValueError, match="without a summary"):
        instructions_of(["# callgrind format\n"])


def test_costs_per_unit_leave_out_the_plain_requests_beside_them() -> None:
    counts = {
        "plain": 10 * 100.0,
        "short_streams": 10 * (200.0 + 4 * 7),
        "long_streams": 10 * (200.0 + 36 * 7),
        "retried": 10 * (5 * 100.0 + 250.0),
        "waiting": 10 * (100.0 + 300.0) + 100.0,
        "handed_off": 10 * 400.0,
        "messages": 10 * 110.0,
        "responses": 10 * 115.0,
    }
    assert cost_per_unit(counts, TURNS) == {
        "plain request": 100.0,
        "streamed request of 4 chunks": 228.0,
        "chunk of a stream": 7.0,
        "waiting request": 300.0,
        "retried request": 250.0,
        "request with a hand-off": 400.0,
        "plain request in messages": 110.0,
        "plain request in responses": 115.0,
    }
    assert cost_without_keys(counts, TURNS) == {"plain request, no keys": 100.0, "waiting request, no keys": 300.0}


def test_every_unit_has_a_row_with_its_goal() -> None:
    turns = dict.fromkeys(TURNS, 1.0)
    units = [*cost_per_unit(turns, TURNS), *cost_without_keys(turns, TURNS), DECISION]
    windows = {unit: [100.0, 100.0] for unit in units}
    table = rows(windows, windows, "0123abc")
    assert {row.metric: row.goal for row in table if row.goal is not None} == load_goals("gateway-instructions")
    assert len(table) == len(units) + 3
    slower = {unit: [104.0, 104.0] for unit in units}
    for base in (windows, {}):  # what the base cannot do is not compared
        compared = [row for row in rows(slower, base, "0123abc") if row.goal is not None and row.versus is not None]
        assert not any(row.holds for row in compared)


def test_the_standard_error_is_that_of_the_windows_quotients() -> None:
    alike = {"chunk": [110.0, 220.0, 330.0]}
    assert standard_errors(alike, {"chunk": [100.0, 200.0, 300.0]})["chunk"] == pytest.approx(0.0)
    assert standard_errors(alike, {"chunk": [100.0, 200.0, 330.0]})["chunk"] == pytest.approx(1 / 30)


@pytest.mark.parametrize(("ratio", "reached"), [(0.96, False), (0.97, True), (1.03, True), (1.04, False)])
def test_a_range_is_a_goal(ratio: float, reached: bool) -> None:
    assert meets_goal("0.97..1.03", ratio) is reached


def test_sources_are_code_and_settings_but_no_tests_or_benchmarks() -> None:
    assert is_source("gateway/fairlead_gateway/__main__.py")
    assert is_source("pyproject.toml")
    assert not is_source("tests/gateway/test_listen.py")
    assert not is_source("bench/fairlead_bench/results.py")
    assert not is_source("README.md")


def test_a_scripted_stream_ends_with_the_usage_where_it_was_asked_for() -> None:
    for body, wanted in ((b'{"stream_options":{"include_usage":true}}', 1), (b'{"stream":true}', 0)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            call = Call(ours, "bench-model", body)
            call.begin_stream()
            call.send_event()
            call.end_stream(2)
            received = theirs.recv(65_536)
        assert received.count(b"data: ") == 4 + wanted
        assert received.count(b'"completion_tokens":2') == wanted
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("body", "knows_ids", "prompts", "tokens"),
    [
        (b'{"stream":true,"return_token_ids":true}', True, b'"prompt_token_ids":[12345,', b'"token_ids":[12345]}]}'),
        (b'{"stream":true}', True, b'"prompt_token_ids":null', b'"token_ids":null}]}'),
        (b'{"stream":true,"return_token_ids":true}', False, b"", b'"finish_reason":null}]}'),
    ],
)
def test_scripted_events_have_the_ids_that_were_asked_for(
    body: bytes, knows_ids: bool, prompts: bytes, tokens: bytes
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call = Call(ours, "bench-model", body, knows_ids=knows_ids)
        call.begin_stream()
        opening = theirs.recv(65_536)
        call.send_event()
        event = theirs.recv(65_536)
    assert prompts in opening
    assert event.endswith(tokens + b"\n\n\r\n")
    assert knows_ids or b"token_ids" not in opening + event


def test_chunks_are_compared_with_those_of_streams_that_never_go_on() -> None:
    units = [f"{unit}, {kind}" for unit in (CHUNK, STREAM) for kind in stream_continuation.KINDS]
    base = {unit: [100.0, 100.0] for unit in units}
    windows = base | {f"{CHUNK}, {stream_continuation.ON}": [121.0, 121.0]}
    windows[f"{CHUNK}, {stream_continuation.OFF}"] = [100.5, 101.0]
    table = {row.metric: row for row in stream_continuation.rows(windows, base, "0123abc")}
    assert {name for name, row in table.items() if row.goal is not None} == set(load_goals(stream_continuation.NAME))
    assert table[f"instructions per {CHUNK}, {stream_continuation.OFF}"].holds
    ratio = table[f"instructions of a {CHUNK}, {stream_continuation.ON} ÷ {stream_continuation.OFF}"]
    assert (ratio.ratio, ratio.holds) == (pytest.approx(121 / 100.75), False)


def test_requests_are_read_one_by_one_from_one_connection() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"POST /v1 HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /metrics HTTP/1.1\r\n\r\n")
        first = read_request(theirs, b"")
        assert first is not None
        assert (first.method, first.body) == ("POST", b"{}")
        second = read_request(theirs, first.rest)
        assert second is not None
        assert (second.method, second.body, second.rest) == ("GET", b"", b"")
        assert read_request(theirs, second.rest) is None


COUNTS = {NO_KEYS: 100.0, WITH_KEY: 110.0, TENANT: 115.0, LIMITED: 120.0, STRICT: 132.0}


def test_ratios_are_those_of_the_means() -> None:
    windows = {unit: [count - 1, count + 1] for unit, count in COUNTS.items()}
    table = {row.metric: row for row in tenant_requests.rows(windows)}
    ratios = {name for name in load_goals(NAME) if "÷" in name}
    assert {name for name, row in table.items() if row.goal is not None} == ratios
    assert table[f"instructions per {LIMITED}"].value == 120.0
    assert table[f"instructions of a {LIMITED} ÷ {WITH_KEY}"].ratio == pytest.approx(120 / 110)
    assert table[f"instructions of a {STRICT} ÷ {NO_KEYS}"].ratio == pytest.approx(1.32)


def test_limits_beyond_the_goal_do_not_hold() -> None:
    windows = {unit: [count] for unit, count in {**COUNTS, LIMITED: 127.0}.items()}
    assert not next(
        row for row in tenant_requests.rows(windows) if row.metric == f"instructions of a {LIMITED} ÷ {WITH_KEY}"
    ).holds


def test_limits_are_a_document_of_a_tenant_with_four_limits() -> None:
    for unit, enforcement in ((LIMITED, None), (STRICT, "Strict")):
        spec = load_document(callers_by_unit()[unit].file)["spec"]
        assert [sorted(limit) for limit in spec["limits"]] == [["per", "requests", "tokens"], ["per", "tokens"]]
        assert (spec["budget"]["per"], spec.get("enforcement")) == ("Month", enforcement)
