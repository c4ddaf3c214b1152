"""Late KV events: blocks that an engine has just evicted are no sign of drift.

Blocks that are missing without such an event are.
"""

from typing import TYPE_CHECKING, cast

import pytest

from fairlead_gateway.kv_index.links import estimate_links
from fairlead_gateway.kv_index.messages import PromptFinished
from fairlead_gateway.kv_index.supervisor.model_index import FIRST_SECONDS, PREFIX_MAP_JUDGE_SECONDS, ModelIndex
from fairlead_gateway.telemetry.status_types import BlockCounts, IndexState
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change, CompletenessChanged
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_testing.kvstore.changed_blocks import ChangedBlocks

if TYPE_CHECKING:
    from fairlead_kvstore.blockstore.store import ModelBlocks

ENGINE = "pod/8000/0"
HASHES, ENDS, OWNS = (11, 12, 13, 14), (256, 512, 768, 1_024), [1, 2, 3, 4]


class Place:
    """One engine's index at a gateway, with one prompt linked block by block."""

    def __init__(self) -> None:
        self.blocks = ChangedBlocks()
        self.model = ModelIndex("default/tiny", cast("ModelBlocks", self.blocks), secret=b"s")
        self.now = 100.0
        self.apply([CompletenessChanged(ENGINE, True, "", self.now)])
        self.model.translator.add_links(estimate_links(HASHES, ENDS, OWNS, size=1_024, tokens=256, block_size=64))
        self.apply([BlocksStored(ENGINE, StorageTier.GPU, OWNS)])

    def apply(self, changes: list[Change]) -> None:
        self.blocks.apply(changes)
        self.model.on_changes(changes)
        self.model.corrections(self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.model.corrections(self.now)

    def answer(self, credited: float, reported: int, *, lost_after: float | None) -> None:
        """Sends a prompt of 256 tokens, of which the index predicts the share `credited`.

        lost_after: seconds until the engine evicts it.
        """
        self.model.on_dispatch(ENGINE, 99, HASHES, ENDS, 1_024, self.now)
        if lost_after is not None:
            self.pass_(max(0.0, lost_after))
            self.apply([BlocksRemoved(ENGINE, StorageTier.GPU, OWNS)])
            self.pass_(max(0.0, -lost_after))
        self.pass_(0.1)
        self.apply([BlocksStored(ENGINE, StorageTier.GPU, OWNS)])  # its own prefill
        self.model.on_finish(PromptFinished("default/tiny", ENGINE, 99, 256, reported, credited, credited), self.now)

    def state(self) -> IndexState:
        return self.model.status(ENGINE).state


def test_what_was_lost_while_a_prompt_was_on_its_way_is_no_ghost() -> None:
    place = Place()
    for _ in range(50):
        place.answer(1.0, 0, lost_after=0.05)
        place.pass_(3.0)
    look = place.model.status(ENGINE)
    assert place.state() is IndexState.INDEX
    assert (look.late, look.answers, look.quarantines) == (50, 50, 0)


def test_what_nobody_saw_go_is_a_ghost() -> None:
    place = Place()
    for _ in range(6):
        place.answer(1.0, 0, lost_after=None)
    assert place.state() is IndexState.INDEX, "not yet judged"
    place.pass_(PREFIX_MAP_JUDGE_SECONDS)
    assert place.state() is IndexState.QUARANTINED
    assert place.model.status(ENGINE).late == 0


def test_what_was_lost_long_before_the_prompt_was_sent_is_no_excuse() -> None:
    place = Place()
    place.apply([BlocksRemoved(ENGINE, StorageTier.GPU, OWNS)])
    place.pass_(10.0)
    place.apply([BlocksStored(ENGINE, StorageTier.GPU, OWNS)])
    for _ in range(6):
        place.answer(1.0, 0, lost_after=None)
    place.pass_(PREFIX_MAP_JUDGE_SECONDS)
    assert place.state() is IndexState.QUARANTINED


def test_after_a_quarantine_what_the_engine_holds_is_told_anew_and_counts_on_trial() -> None:
    place = Place()
    for _ in range(6):
        place.answer(1.0, 0, lost_after=None)
    place.now += PREFIX_MAP_JUDGE_SECONDS
    (forgotten,) = place.model.corrections(place.now)
    assert (forgotten.forget, forgotten.cached) == ("told", [])
    place.now += FIRST_SECONDS + 1.0
    (again,) = place.model.corrections(place.now)
    assert again.cached, "it is credited again"
    assert place.state() is IndexState.INDEX
    for _ in range(60):
        place.answer(1.0, 256, lost_after=None)
        place.pass_(3.0)
    assert place.state() is IndexState.INDEX
    assert place.model.status(ENGINE).quarantines == 1


def test_block_counts_of_many_large_instances_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    place, names = Place(), [f"e-{number}" for number in range(200)]
    for name in names:
        place.apply([BlocksStored(name, StorageTier.GPU, list(range(300)))])
    counted: list[str] = []

    def count_unique(instance: str, used_since: float, max_rows: int) -> tuple[int, int, int]:
        assert (used_since, max_rows) == (place.now - 300.0, 64)
        counted.append(instance)
        return 300, 2, 1

    monkeypatch.setattr(place.blocks, "count_unique", count_unique, raising=False)
    for _ in range(12):
        place.now += 32.0
        before = len(counted)
        place.model.run_census(place.now)
        assert 1 <= len(counted) - before <= 21, "some 100 ms at a time"
        place.model.run_census(place.now + 0.1)
    assert len(counted) < 400
    assert set(names) < set(counted)
    assert place.model.status(names[0]).block_counts == BlockCounts(300, 2, 1)
    place.model.retain([names[0]])
    assert place.model.status(names[1]).block_counts is None
