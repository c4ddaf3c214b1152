"""Attacks on the control plane and the gateway, and what each of them costs others.

Each attack is run, and its cost is compared with a goal. The seed draws the bodies; everything else
is fixed. The load average of the machine is in the result: other processes lengthen times, and
change no count.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fairlead_bench.hardening import (
    body_stalls,
    control_answers,
    engine_ejections,
    fair_shares,
    index_turns,
    unread_connections,
)
from fairlead_bench.hardening.control_answers import AnswerCost
from fairlead_bench.hardening.unread_connections import UnreadResult
from fairlead_bench.large_bodies.benchmark import IDLE
from fairlead_bench.results import ResultRow, load_goals, value_row, write_results

_MEGABYTE = 1e6
_ANSWER_MEMORY = "nested gzip bomb as a control answer: memory, at most"
_ANSWER_SECONDS = "nested gzip bomb as a control answer: time of a read, at most"
_UNREAD_OPEN = "clients that never read: connections open after 60 s"
_UNREAD_PEAK = "clients that never read: growth of the worker's memory, at most"
_UNREAD_SECOND = "clients that never read: further growth of the worker's memory, the second time"
_STREAMS_OPEN = "200 streams that clients never read: connections open after 60 s"
_STREAMS_KEPT = "200 streams that clients never read: memory of the worker afterwards ÷ before"
_FLOOD = "a flood: lost requests of a caller below its share"
_ENDPOINTS = "4,096 endpoints of one manifest: instances that other namespaces lose"
_POISON = "a poison request of one caller: ejected engines"
_DESCRIPTORS = "a gateway without descriptors: ejected engines"
_UNITS = {_FLOOD: "share", _ENDPOINTS: "instances"}
_STALL = "bodies of 31 MiB: stall of a worker's loop beyond that of an idle one, at most"
_TURN = "KV events of a hostile engine: CPU time of a slice of the indexer, at most"


def answer_rows(costs: Mapping[str, AnswerCost], goals: Mapping[str, str]) -> Iterator[ResultRow]:
    """Yields the rows of control answers."""
    for name, cost in costs.items():
        yield value_row(f"{name}: memory", "MB", cost.allocated_bytes / _MEGABYTE, None)
        yield value_row(f"{name}: time", "s", cost.seconds, None)
    largest = max(cost.allocated_bytes for cost in costs.values()) / _MEGABYTE
    yield value_row(_ANSWER_MEMORY, "MB", largest, goals[_ANSWER_MEMORY])
    yield value_row(_ANSWER_SECONDS, "s", max(cost.seconds for cost in costs.values()), goals[_ANSWER_SECONDS])


def unread_rows(result: UnreadResult, goals: Mapping[str, str]) -> Iterator[ResultRow]:
    """Yields the rows of clients that never read."""
    yield value_row("clients that never read: connections", "connections", float(result.clients), None)
    yield value_row("clients that never read: until the last was closed", "s", result.closed_seconds, None)
    yield value_row(_UNREAD_OPEN, "connections", float(result.still_open), goals[_UNREAD_OPEN])
    yield value_row(_UNREAD_PEAK, "MB", result.peak_growth_bytes / _MEGABYTE, goals[_UNREAD_PEAK])
    yield value_row(_UNREAD_SECOND, "MB", result.second_growth_bytes / _MEGABYTE, goals[_UNREAD_SECOND])
    yield value_row("clients that never read: memory of the worker afterwards ÷ before", "×", result.kept_share, None)


def stream_rows(result: UnreadResult, goals: Mapping[str, str]) -> Iterator[ResultRow]:
    """Yields the rows of clients that never read their streams."""
    yield value_row("200 streams that clients never read: until the last was closed", "s", result.closed_seconds, None)
    yield value_row(_STREAMS_OPEN, "connections", float(result.still_open), goals[_STREAMS_OPEN])
    peak = result.peak_growth_bytes / _MEGABYTE
    yield value_row("200 streams that clients never read: growth of the worker's memory", "MB", peak, None)
    yield value_row(_STREAMS_KEPT, "×", result.kept_share, goals[_STREAMS_KEPT])


def count_rows(counts: Mapping[str, float], goals: Mapping[str, str]) -> Iterator[ResultRow]:
    """Yields the rows of shares and ejections."""
    for name, count in counts.items():
        yield value_row(name, _UNITS.get(name, "engines"), count, goals[name])


def stall_rows(stalls: Mapping[str, float], goals: Mapping[str, str]) -> Iterator[ResultRow]:
    """Yields the rows of large bodies."""
    for name, seconds in stalls.items():
        yield value_row(f"longest stall: {name}", "s", seconds, None)
    yield value_row(_STALL, "s", max(stalls.values()) - stalls[IDLE], goals[_STALL])


def turn_rows(turns: Mapping[str, float], goals: Mapping[str, str]) -> Iterator[ResultRow]:
    """Yields the rows of hostile KV events."""
    for name, seconds in turns.items():
        yield value_row(f"longest slice: {name}", "s", seconds, None)
    yield value_row(_TURN, "s", max(turns.values()), goals[_TURN])


def main(arguments: Sequence[str]) -> int:
    """Runs the attacks, prints the table and writes it; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=unread_connections.CLIENTS, help="clients that never read")
    parser.add_argument("--out", type=Path, default=Path("out/bench/hardening.json"))
    given = parser.parse_args(arguments)
    goals, loads = load_goals("hardening"), [os.getloadavg()[0]]
    counts: dict[str, float] = {
        _FLOOD: fair_shares.lost_share_of_steady_caller(),
        _ENDPOINTS: fair_shares.instances_lost_to_endpoints(),
        _POISON: engine_ejections.ejections_by_poison_request(),
        _DESCRIPTORS: engine_ejections.ejections_without_descriptors(),
    }
    rows = [
        *answer_rows(control_answers.measure(given.repeats), goals),
        *unread_rows(unread_connections.measure(given.clients), goals),
        *stream_rows(unread_connections.measure_streams(), goals),
        *count_rows(counts, goals),
        *stall_rows(body_stalls.measure(given.seed, given.repeats), goals),
        *turn_rows(index_turns.measure(min(2, given.repeats)), goals),
    ]
    loads.append(os.getloadavg()[0])
    write_results("hardening", rows, seed=given.seed, file=given.out, load_average=loads)
    return 0 if all(row.holds for row in rows) else 1
