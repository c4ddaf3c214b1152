"""The index benchmark's rows carry exactly the goals that are checked in, and what its streams say
is what they are counted as."""

from itertools import islice
from typing import Any

import pytest

from fairlead_bench.index.benchmark import KINDS, IndexFigures, rows
from fairlead_bench.index.event_streams import MODEL, marker_hash, payloads
from fairlead_bench.results import load_goals
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_testing.kvstore.block_store import apply_batch, cached_depths, decode_events
from fairlead_testing.pytest_hooks.nightly import shortened

GOALS = load_goals("index")


def measured(cpu: float = 5.0, held: int = 1_000_000) -> dict[str, Any]:
    cost = {"cpu": cpu, "grew": 90 * held}
    cold = {"seconds": 3.0, "blocks": held, "memory": 100 * held}
    run = {"blocks": held, "held": held, "redis_bytes": 46 * held, "cold": cold}
    return run | {"indexer": cost, "reader": cost, "redis": cost}


def figures(cpu: float = 5.0) -> IndexFigures:
    return IndexFigures({kind: [measured(cpu)] for kind in KINDS}, measured(50.0, 10_000_000))


def test_every_goal_has_a_row() -> None:
    assert {row.metric: row.goal for row in rows(IndexFigures()) if row.goal} == GOALS
    assert not [row for row in rows(IndexFigures()) if row.goal and row.holds]


def test_a_run_within_the_bar_holds_and_a_slow_indexer_does_not() -> None:
    assert [row.metric for row in rows(figures()) if not row.holds] == []
    slow = [row.metric for row in rows(figures(20.0)) if not row.holds]
    assert slow == [metric for metric in GOALS if metric.startswith("blocks per")]


@pytest.mark.parametrize("kind", KINDS)
def test_streams_change_as_many_blocks_as_they_say_and_end_with_their_mark(kind: str) -> None:
    truth, blocks_each = BlockStore(), shortened(30_000, 2_000)
    truth.attach("e", MODEL, 0.0)
    announced = counted = 0
    for payload, blocks in payloads(kind, blocks_each, 7):
        changes = apply_batch(truth, "e", decode_events(payload), 0.0)
        announced += blocks
        counted += sum(len(change.hashes) for change in changes if isinstance(change, BlocksStored | BlocksRemoved))
    assert announced == counted
    assert announced >= blocks_each
    assert cached_depths(truth, "e", [marker_hash(7)])[0] == 1
    assert [payload for payload, _ in islice(payloads(kind, 100, 8), 1)] != [
        payload for payload, _ in islice(payloads(kind, 100, 9), 1)
    ]
