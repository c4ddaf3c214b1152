"""The table of an index, whose text comes from engines and from Redis."""

import io
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given
from rich.console import Console

from fairlead_cli.index.loaded_index import LoadedIndex
from fairlead_cli.index.stats import BlockCounts, IndexStats, InstanceContents, count_blocks, render_stats
from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS, StorageTier


def contents(**changed: object) -> InstanceContents:
    plain = dict.fromkeys(InstanceContents.__struct_fields__)
    plain |= {"id": "a", "complete": False, "reason": "", "trouble": ""}
    plain |= dict.fromkeys(("blocks", "unique", "gpu", "cpu", "disk"), 1)
    return InstanceContents(**(plain | changed))  # type: ignore[arg-type]


def rendered(*instances: InstanceContents, is_wide: bool = False) -> str:
    stats = IndexStats(
        model="ns/m\x1b[2J",
        leader="one",
        lease_seconds=1.0,
        epoch=1,
        sequence=1,
        stream_entries=1,
        stale_seconds=None,
        trouble="",
        unreadable={},
        blocks=1,
        hints=0,
        instances=list(instances),
    )
    stats.name_pods({"0c5e": "tiny-main-x2kd"})
    out = io.StringIO()
    Console(file=out, width=400, force_terminal=False).print(render_stats([stats], is_wide=is_wide))
    return out.getvalue()


def test_text_of_engines_is_neither_markup_nor_terminal_control() -> None:
    text = rendered(contents(id="[red]a", reason="the source of an earlier load of [/x] \x1b]52;c;AAAA\x07 is unknown"))
    assert "[red]a" in text
    assert "load of [/x] \N{REPLACEMENT CHARACTER}]52;c;AAAA" in text
    assert "\x1b" not in text


def test_instances_have_the_names_of_their_pods() -> None:
    text = rendered(contents(id="0c5e/8000/0"), contents(id="adopted"))
    assert "tiny-main-x2kd/8000/0" in text
    assert "adopted" in text
    assert "0c5e" not in text
    wide = rendered(contents(id="0c5e/8000/0"), is_wide=True)
    assert wide.index("tiny-main-x2kd/8000/0") < wide.index(" 0c5e/8000/0")


def test_ages_that_are_no_number_are_unknown() -> None:
    assert "no for unknown: " in rendered(contents(since_seconds=math.inf, evicted_age_seconds=math.inf))
    rendered(contents(since_seconds=math.nan, lag_seconds=-math.inf))


def test_block_in_two_tiers_counts_once_and_empty_instances_are_listed() -> None:
    index = LoadedIndex()
    index.apply(
        [
            changes.BlocksStored("a", StorageTier.GPU, [1, 2, 3]),
            changes.BlocksStored("a", StorageTier.CPU, [2]),
            changes.BlocksStored("b", StorageTier.DISK, [3]),
        ]
    )
    index.apply([changes.CompletenessChanged("c", False, "no KV event was read yet", 0.0)])
    assert count_blocks(index)[0] == {
        "a": BlockCounts(gpu=3, cpu=1, disk=0, blocks=3, unique=2),
        "b": BlockCounts(gpu=0, cpu=0, disk=1, blocks=1, unique=0),
        "c": BlockCounts(),
    }
    assert count_blocks(index)[1] == 3


@pytest.mark.property
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(INSTANCE_TIERS), st.sets(st.integers(1, 30), min_size=1)),
        max_size=12,
    )
)
def test_counts_equal_a_naive_count(reported: list[tuple[str, StorageTier, set[int]]]) -> None:
    index = LoadedIndex()
    held: dict[str, set[tuple[int, StorageTier]]] = {}
    for name, tier, blocks in reported:
        index.apply([changes.BlocksStored(name, tier, sorted(blocks))])
        held.setdefault(name, set()).update((own, tier) for own in blocks)
    counts = count_blocks(index)[0]
    assert set(counts) == set(held)
    for name, content in held.items():
        assert set(index.blocks_of(name)) == content
        mine = {own for own, _ in content}
        others = {own for other, there in held.items() if other != name for own, _ in there}
        tiers = [sum(1 for _, tier in content if tier is wanted) for wanted in INSTANCE_TIERS]
        assert counts[name] == BlockCounts(*tiers, blocks=len(mine), unique=len(mine - others))
