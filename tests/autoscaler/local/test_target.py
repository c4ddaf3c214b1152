"""The two files of local mode: what the supervisor says and what the autoscaler wants."""

import os
from pathlib import Path

import pytest

from fairlead.errors import Unavailable
from fairlead.fleet.model import SloTargets
from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler.core import PoolSpec, ReplicaState
from fairlead_autoscaler.local.state_files import (
    DESIRED_FILE,
    STATE_FILE,
    DesiredPool,
    LocalEngine,
    LocalModel,
    LocalPool,
    LocalState,
    read_desired,
    write_file,
)
from fairlead_autoscaler.local.target import FileScaler, LocalTarget
from fairlead_autoscaler.target import PoolState, Replica

KEY = "default/tiny"


async def test_what_the_supervisor_wrote_is_the_world_with_ages(tmp_path: Path) -> None:
    facts = PoolSpec("main", minimum=0, maximum=4)
    engines = (
        LocalEngine("main-0", ReplicaState.READY, 900.0, 905.5, ("main-0/9001/0",)),
        LocalEngine("main-1", ReplicaState.PENDING, 998.0),
    )
    model = LocalModel(SloTargets(ttft_seconds=2.0), {"mode": "Auto"}, (LocalPool(facts, 2, engines),))
    write_file(tmp_path / STATE_FILE, LocalState({KEY: model}))
    world = LocalTarget(tmp_path / STATE_FILE, ManualClock(1_000.0), 5.0)
    state = (await world.observe())[KEY]
    assert state.model.ttft_seconds == 2.0
    assert state.model.pools == (facts,)
    assert state.policy.mode.value == "Auto"
    assert state.pools["main"] == PoolState(
        2,
        (
            Replica("main-0", ReplicaState.READY, 100.0, 5.5, ("main-0/9001/0",)),
            Replica("main-1", ReplicaState.PENDING, 2.0),
        ),
    )


@pytest.mark.parametrize("text", [None, "", "{", '{"models": {"a": 1}}'])
async def test_a_file_that_cannot_be_read_is_a_world_that_is_away(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / STATE_FILE).write_text(text)
    with pytest.raises(Unavailable):
        await LocalTarget(tmp_path / STATE_FILE, ManualClock(), 5.0).observe()


async def test_wishes_of_all_pools_stay_together_and_survive_the_process(tmp_path: Path) -> None:
    await FileScaler(tmp_path / DESIRED_FILE).scale(KEY, "main", 3)
    await FileScaler(tmp_path / DESIRED_FILE).scale("default/other", "main", 0)
    await FileScaler(tmp_path / DESIRED_FILE).scale(KEY, "main", 1, ("main-1", "main-0"))
    assert read_desired(tmp_path / DESIRED_FILE).pools == {
        KEY: {"main": DesiredPool(1, ("main-1", "main-0"))},
        "default/other": {"main": DesiredPool(0)},
    }
    assert os.listdir(tmp_path) == [DESIRED_FILE]


async def test_wishes_that_cannot_be_read_are_wished_anew(tmp_path: Path) -> None:
    (tmp_path / DESIRED_FILE).write_text("{")
    await FileScaler(tmp_path / DESIRED_FILE).scale(KEY, "main", 3)
    assert read_desired(tmp_path / DESIRED_FILE).pools == {KEY: {"main": DesiredPool(3)}}


async def test_a_folder_that_is_gone_refuses_the_wish(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await FileScaler(tmp_path / "gone" / DESIRED_FILE).scale(KEY, "main", 3)
