"""Workers of one gateway: the rows of their runs, and a run of two with real requests."""

import argparse
import os
import shutil
import sys

import pytest

from fairlead_bench.gateway.native_programs import build
from fairlead_bench.results import load_goals
from fairlead_bench.sharing.worker_scaling import NAME, WorkerRun, measure_workers, worker_rows


def test_rows_compare_n_workers_with_n_times_one() -> None:
    runs = [
        WorkerRun("request-2k", 1, 1, 10_000.0, 1.0),
        WorkerRun("request-2k", 2, 1, 16_000.0, 2.0),
        WorkerRun("request-2k", 1, 2, 12_000.0, 1.0),
        WorkerRun("request-2k", 2, 2, 18_700.0, 2.0),
        WorkerRun("request-2k", 1, 3, 11_000.0, 1.1),
        WorkerRun("request-2k", 2, 3, 30_000.0, 2.0),
    ]
    rows = {row.metric: row for row in worker_rows(runs)}
    assert rows["request-2k, workers: 1"].value == 11_000.0
    share = rows["request-2k, workers: 2: ÷ 2 × one"]
    assert share.value == pytest.approx(0.85)
    assert not share.holds
    assert rows["request-2k, workers: 1: CPU per request"].value == pytest.approx(100.0)


def test_every_goal_has_its_row() -> None:
    counts = (1, 2, 4, 8, 16)
    runs = [WorkerRun(case, count, 1, 1e6 * count, 1.0) for case in ("request-2k", "bulk") for count in counts]
    rows = {row.metric: row.goal for row in worker_rows(runs) if row.goal}
    assert rows == load_goals(NAME)


@pytest.mark.nightly
def test_two_workers_answer_all_requests_and_chunks() -> None:
    if not sys.platform.startswith("linux") or shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("needs Linux and a C compiler")
    given = argparse.Namespace(seed=1, seconds=0.2)
    runs = list(measure_workers(build(), 2, 1, given))
    assert [(run.case, run.workers) for run in runs] == [("request-2k", 2), ("bulk", 2)]
    assert all(run.units_per_second > 0.0 and run.cores > 0.0 for run in runs)
