"""The gateway benchmark's own parts: what is made of runs, and that its two programs tell the truth
about each other."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fairlead_bench.gateway import result_rows, tail_latency, target_process, targets
from fairlead_bench.gateway.benchmark import schedule
from fairlead_bench.gateway.load_cases import CASES, FULL, QUICK, SIZES, UNIQUE, make_bodies
from fairlead_bench.gateway.load_cases import write_bodies as write_bodies
from fairlead_bench.gateway.measurement import CaseRun, RunObservations, summarize
from fairlead_bench.gateway.native_programs import memory_load
from fairlead_bench.gateway.result_rows import (
    SEPARATOR,
    RunTable,
    aborts_seen,
    cpu,
    decision_rows,
    kilobytes_each,
    rows,
    under_way,
)
from fairlead_bench.gateway.target_process import ProcessUsage
from fairlead_bench.gateway.targets import DIRECT, ENVOY, FAIRLEAD, SGLANG, TARGETS, gateway_options
from fairlead_bench.results import load_goals
from fairlead_testing.pytest_hooks.nightly import shortened

FOUND = {
    "seconds": 2.0,
    "requests": 1000,
    "errors": 0,
    "wrong": 0,
    "status": 0,
    "unfinished": 0,
    "events": 0,
    "aborts": 0,
    "aborts_measured": 0,
    "opened": 0,
    "delay": {"p50": 0.001},
    "first_event": {},
    "under_way": {},
}
BEFORE = {"connections": 10, "requests": 100, "aborted": 0, "open": 0}


def _run(case: str, target: str, number: int = 1, **given: object) -> CaseRun:
    return CaseRun(case, target, number, **given)  # type: ignore[arg-type]  # keyword by keyword, as a test needs them


def _usage(cpu_seconds: float, pids: tuple[int, ...] = (1,)) -> ProcessUsage:
    return ProcessUsage(cpu_seconds, cpu_seconds / 2, 1 << 20, frozenset(pids))


# From runs to rows.


def test_a_figure_is_the_median_of_its_valid_runs() -> None:
    table = RunTable(
        [
            _run("request-2k", FAIRLEAD, 1, cpu_microseconds=30.0),
            _run("request-2k", FAIRLEAD, 2, cpu_microseconds=90.0, problems=("nothing was measured",)),
            _run("request-2k", FAIRLEAD, 3, cpu_microseconds=50.0),
        ]
    )
    assert table.median("request-2k", FAIRLEAD, cpu) == 40.0


def test_every_goal_of_the_table_has_its_row_in_the_same_order() -> None:
    table = [row for row in rows([], idle_bytes={}, decisions={}) if row.goal is not None]
    assert [(row.metric, row.goal) for row in table] == list(load_goals("gateway").items())


def test_goals_that_the_run_did_not_ask_about_have_no_row() -> None:
    table = rows([], idle_bytes={}, decisions={}, cases=QUICK.cases)
    assert not [row for row in table if row.metric.startswith("CPU per 128 KB")]
    assert [row for row in table if row.metric.startswith("CPU per 32 KB")]


def test_a_goal_is_held_against_the_ratio_to_its_peer() -> None:
    runs = [
        _run("request-2k", FAIRLEAD, cpu_microseconds=45.0),
        _run("request-2k", SGLANG, cpu_microseconds=150.0),
        _run("request-2k", ENVOY, cpu_microseconds=29.0),
    ]
    by_peer = {row.versus: row for row in rows(runs, idle_bytes={}, decisions={}) if row.goal and row.ratio}
    assert (by_peer[SGLANG].ratio, by_peer[SGLANG].holds) == (pytest.approx(0.3), True)
    assert by_peer[ENVOY].ratio == pytest.approx(45 / 29)
    assert not by_peer[ENVOY].holds


def test_a_goal_whose_peer_is_absent_does_not_hold_and_its_row_stays() -> None:
    runs = [_run("request-2k", FAIRLEAD, cpu_microseconds=1.0)]
    table = rows(runs, idle_bytes={}, decisions={}, absent=[ENVOY])
    goal = next(row for row in table if row.metric.endswith(f"÷ {ENVOY}"))
    assert (goal.value, goal.versus_value, goal.holds) == (1.0, None, False)
    assert any(row.metric == f"CPU per 2 KB request{SEPARATOR}{ENVOY}" and row.value is None for row in table)


def test_added_delay_is_the_difference_to_the_same_load_without_a_target() -> None:
    table = RunTable(
        [
            _run("paced-1000", FAIRLEAD, under_way={"p50": 0.0005}),
            _run("paced-1000", DIRECT, under_way={"p50": 0.0003}),
        ]
    )
    assert table.added_over_direct("paced-1000", FAIRLEAD, under_way("p50")) == pytest.approx(0.0002)
    assert table.added_over_direct("paced-1000", ENVOY, under_way("p50")) is None


def test_memory_of_a_stream_is_what_a_thousand_of_them_add() -> None:
    run = _run("memory", FAIRLEAD, rss_bytes=60_000_000 + 1000 * 16 * 1024, rss_before_bytes=60_000_000)
    assert kilobytes_each(run) == 16.0


def test_departures_are_counted_over_all_runs() -> None:
    runs = [_run("abort", FAIRLEAD, 1, aborts=10, aborts_seen=10), _run("abort", FAIRLEAD, 2, aborts=10, aborts_seen=9)]
    assert aborts_seen(runs) == 95.0
    assert aborts_seen([]) is None


def test_rounds_are_interleaved_and_far_targets_leave_early() -> None:
    near, far = "fairlead", "nginx"
    order = [(target, number) for case, target, number in schedule(FULL, [near, far]) if case.name == "request-2k"]
    assert order[:4] == [(near, 1), (far, 1), (near, 2), (far, 2)]
    assert order[4:] == [(near, 3), (near, 4), (near, 5)]


def test_the_result_file_has_the_shape_that_outside_tools_read(tmp_path: Path) -> None:
    runs = [_run("request-2k", FAIRLEAD, cpu_microseconds=30.0)]
    table = rows(runs, idle_bytes={FAIRLEAD: 6e7}, decisions={"2k": 9e-6})
    file = tmp_path / "gateway.json"
    conditions = result_rows.RunConditions(3, {"plan": "quick"}, {"envoy": "1.40.0"}, {"smg": "no"})
    result_rows.write(file, table, runs, conditions)
    content = json.loads(file.read_text())
    assert {"machine", "versions", "seed", "rows"} <= content.keys()
    assert content["versions"]["envoy"] == "1.40.0"
    assert content["absent"] == {"smg": "no"}
    assert set(content["rows"][0]) == {"metric", "value", "unit", "versus", "versus_value", "ratio", "goal", "holds"}
    assert content["rows"] == [asdict(row) for row in table]


# From what was seen to a run.


def run_of(tally: Mapping[str, Any], after: Mapping[str, int], usages: list[ProcessUsage]) -> CaseRun:
    return summarize(CASES["request-2k"], FAIRLEAD, 1, RunObservations(tally, BEFORE, after, usages, 1))


def test_cpu_is_divided_by_what_was_done_meanwhile() -> None:
    after = BEFORE | {"requests": 1200}
    run = run_of(FOUND, after, [_usage(1.0), _usage(1.05)])
    assert run.is_valid
    assert run.cpu_microseconds == pytest.approx(50.0)
    assert run.core_share == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("tally", "after", "why"),
    [
        ({"errors": 5}, {}, "failed"),
        ({"wrong": 5, "status": 503}, {}, "status 503"),
        ({"requests": 0}, {}, "nothing"),
        ({}, {"connections": 900}, "no connection is kept"),
    ],
)
def test_a_run_that_measured_something_else_is_not_used(tally: dict[str, int], after: dict[str, int], why: str) -> None:
    seen = [_usage(1.0), _usage(1.05)]
    counters = BEFORE | {"requests": 1100} | after
    run = run_of(FOUND | tally, counters, seen)
    assert not run.is_valid
    assert why in run.problems[0]


def test_a_run_during_which_processes_change_is_not_used() -> None:
    seen = [_usage(1.0), _usage(1.05, pids=(1, 2))]
    run = run_of(FOUND, BEFORE | {"requests": 1100}, seen)
    assert run.problems == ("processes came or went meanwhile",)


# Prompts, targets, processes.


@pytest.mark.parametrize("size", shortened(["2k", "32k", "220k"], ["2k", "32k"]))
def test_prompts_have_their_size_and_end_with_something_new(size: str) -> None:
    bodies = make_bodies(SIZES[size], count=9, seed=1, max_tokens=8, stream=True)
    assert all(abs(len(body) - SIZES[size]) <= 2 for body in bodies)
    assert all(body.count(UNIQUE) == 1 for body in bodies)
    messages = [json.loads(body)["messages"] for body in bodies]
    assert messages[0][0] == messages[8][0]
    assert messages[0][0] != messages[1][0]
    assert UNIQUE in messages[0][-1]["content"]


def test_prompts_are_the_same_for_the_same_seed() -> None:
    assert make_bodies(4096, count=3, seed=7, max_tokens=8, stream=False) == make_bodies(
        4096, count=3, seed=7, max_tokens=8, stream=False
    )


def test_every_target_names_a_peer_that_can_be_installed() -> None:
    assert {target.peer for target in TARGETS.values()} <= {None, *targets.PEERS}
    assert QUICK.targets is not None
    assert set(QUICK.targets) <= set(TARGETS)


def test_keys_are_checked_where_the_gateway_knows_how() -> None:
    assert gateway_options("usage: [--fleet FILE] [--keys FILE] [--workers N]") == ["--keys", "--workers"]
    assert gateway_options("usage: [--fleet FILE]") == []


def test_the_slowest_of_a_hundred_leaves_one_of_a_hundred_out() -> None:
    assert tail_latency.p99([float(number) for number in range(1, 101)]) == 99.0
    assert tail_latency.p99([1.0, 2.0]) == 2.0


def test_a_run_of_the_decision_alone_has_its_goals_and_what_counting_takes() -> None:
    calm = tail_latency.DecisionTail(
        median_seconds=1.8e-5, p99_seconds=2.8e-5, routing_seconds=1.5e-5, same_seconds=2e-5, counting_seconds=2.4e-5
    )
    crowded = replace(calm, p99_seconds=5e-5, counting_seconds=4e-5)
    table = decision_rows({"2k": 9e-6, "32k": 3e-5}, tail_latency.DecisionTails(calm, crowded))
    assert [row.holds for row in table if row.goal is not None] == [True, True, False, True, True, True]
    ratios = [row.ratio for row in table if row.versus == "counting as long"]
    assert ratios == [pytest.approx(28 / 24), pytest.approx(5 / 4)]


def test_a_port_has_the_listeners_that_its_owner_opened() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        inodes = target_process.listening_inodes(listener.getsockname()[1])
        assert len(inodes) == 1
        assert target_process.owns_sockets(os.getpid(), inodes)
        assert not target_process.owns_sockets(os.getpid(), {"0"})


# The programs.


def test_a_memory_load_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="does not start"), memory_load(Path("/bin/true")):
        pass


def test_crowded_cases_differ_from_the_calm_ones_by_the_neighbor_alone() -> None:
    for name, case in CASES.items():
        if case.crowded:
            calm = CASES[name.removesuffix("-crowded")]
            assert replace(case, name=calm.name, title=calm.title, crowded=False) == calm
