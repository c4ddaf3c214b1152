"""The index's mirror answers what the truth would, whatever comes; instances that are gone give their bits back."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fairlead.limits import Limits
from fairlead_kvstore.events.wire import AllCleared, Batch, Event, Removed, Stored
from fairlead_kvstore.index.held import Held, Known
from fairlead_kvstore.index.mirror import IndexMirror
from fairlead_kvstore.index.sink import LocalSink
from fairlead_kvstore.truth import changes
from fairlead_kvstore.truth.changes import Change
from fairlead_kvstore.truth.identity import own_hashes, root
from fairlead_kvstore.truth.tiers import Tier
from fairlead_kvstore.truth.truth import Truth

MODEL = "default/tiny"
NAMES = ("a", "b", "c", "d")
MEDIA = {"GPU": Tier.GPU, "CPU": Tier.CPU, "DISK": Tier.DISK, "remote": Tier.REMOTE}
PATHS = st.text("ab", min_size=1, max_size=6)


def chain(path: str) -> list[int]:
    return own_hashes(root(MODEL), [ord(char) for char in path], 1)


def handles(path: str) -> list[int]:
    return [int("1" + path[:end].translate({97: "0", 98: "1"}), 2) for end in range(1, len(path) + 1)]


def stored(path: str, first: int, medium: str) -> Event:
    parent = handles(path)[first - 1] if first else None
    return Stored(list(handles(path)[first:]), parent, [ord(char) for char in path[first:]], 1, None, medium)


def expected(truth: Truth, path: Sequence[int]) -> dict[str, tuple[int, ...]]:
    found = {}
    for name in NAMES:
        if name in truth:
            held = truth.held(name, path)
            if any(held.values()):
                found[name] = tuple(held[tier] for tier in Tier)
    return found


class AgainstTruth(RuleBasedStateMachine):
    """Random events at four instances; the mirror sees the changes only."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = Truth(limits=Limits(kv_blocks_per_instance=40, kv_shared_seconds=100.0))
        self.mirror = IndexMirror()
        self.now = 0.0
        for name in NAMES:
            self.take(self.truth.attach(name, MODEL, 0.0))

    def take(self, changed: list[Change]) -> None:
        self.mirror.apply(changed)
        self.mirror.apply(changed)  # again does no harm

    def batch(self, name: str, event: Event) -> None:
        if name in self.truth:
            self.take(self.truth.apply(name, Batch(0.0, [event]), self.now))

    @rule(
        name=st.sampled_from(NAMES),
        path=PATHS,
        first=st.integers(0, 5),
        medium=st.sampled_from(["GPU", *sorted(MEDIA)]),
    )
    def stores(self, name: str, path: str, first: int, medium: str) -> None:
        self.batch(name, stored(path, min(first, len(path) - 1), medium))

    @rule(
        name=st.sampled_from(NAMES), paths=st.lists(PATHS, max_size=4), medium=st.sampled_from(["GPU", *sorted(MEDIA)])
    )
    def removes(self, name: str, paths: list[str], medium: str) -> None:
        self.batch(name, Removed([handles(path)[-1] for path in paths], medium))

    @rule(name=st.sampled_from(NAMES))
    def clears(self, name: str) -> None:
        self.batch(name, AllCleared())

    @rule(name=st.sampled_from(NAMES))
    def loses(self, name: str) -> None:
        if name in self.truth:
            self.take(self.truth.lost(name, "a test", self.now))

    @rule(name=st.sampled_from(NAMES))
    def comes_or_goes(self, name: str) -> None:
        if name in self.truth:
            self.take(self.truth.detach(name, "gone"))
        else:
            self.take(self.truth.attach(name, MODEL, self.now))
        if not any(one in self.truth for one in NAMES):  # the model is gone, and its hints with it
            self.mirror = IndexMirror()

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.truth.expire(self.now))
        assert self.mirror.expire(self.now) == []

    @rule(most=st.integers(0, 8))
    def sweeps(self, most: int) -> None:
        self.mirror.sweep(most)

    @invariant()
    def they_agree(self) -> None:
        for path in ("aaaaaa", "ababab", "bbabab", "b", "abbbbb"):
            mine = {held.instance: held.blocks for held in self.mirror.match(chain(path))}
            others = expected(self.truth, chain(path))
            assert {name: mine.get(name) for name in others} == others
            assert all(name in others for name in mine)

    @invariant()
    def holders_are_those_of_the_truth(self) -> None:
        content = {name: set(self.truth.content(name)) for name in NAMES if name in self.truth}
        for own in chain("ababab"):
            there = {name: tuple(t for t in Tier if (own, t) in blocks) for name, blocks in content.items()}
            assert self.mirror.holders(own) == {name: tiers for name, tiers in there.items() if tiers}

    @invariant()
    def standings_are_those_of_the_truth(self) -> None:
        for name in NAMES:
            known = self.mirror.standing(name)
            if name not in self.truth:
                assert known is None
            else:
                state = self.truth.state(name)
                assert known == Known(state.complete, state.reason, state.since)


AgainstTruth.TestCase.settings = settings(stateful_step_count=40)
TestAgainstTruth = pytest.mark.property(AgainstTruth.TestCase)


def test_a_match_names_the_longest_run_of_each_instance_deepest_first() -> None:
    mirror = IndexMirror()
    path = list(range(10, 20))
    mirror.apply([changes.Stored("a", Tier.GPU, 0, path[:4]), changes.Stored("b", Tier.GPU, 0, path)])
    mirror.apply([changes.Stored("c", Tier.GPU, path[0], path[1:])])  # it lacks the first
    assert mirror.match(path) == (Held("b", (10, 10, 10, 10)), Held("a", (4, 4, 4, 4)))
    mirror.apply([changes.Removed("b", Tier.GPU, [path[2]])])  # a hole in the middle
    assert mirror.match(path) == (Held("a", (4, 4, 4, 4)), Held("b", (2, 2, 2, 2)))
    assert mirror.match([]) == ()
    assert mirror.match([99]) == ()


def test_slower_tiers_go_on_where_faster_ones_end_and_hints_come_last() -> None:
    mirror = IndexMirror()
    path = list(range(10, 20))
    for instance in ("x", "a", "y"):
        mirror.apply([changes.Stored(instance, Tier.GPU, 0, path[:2])])
    mirror.apply([changes.Stored("a", Tier.CPU, 0, path[:5]), changes.Stored("a", Tier.DISK, 0, path[5:6])])
    mirror.apply([changes.Hinted(MODEL, path[6:8], 50.0), changes.Stored("y", Tier.GPU, 0, path[7:9])])
    mirror.apply([changes.Hinted(MODEL, path[2:6], 60.0)])
    assert mirror.match(path) == (Held("a", (2, 5, 6, 8)), Held("y", (2, 2, 2, 9)), Held("x", (2, 2, 2, 8)))
    assert mirror.expire(55.0) == path[6:8]
    assert {held.instance: held.blocks[Tier.REMOTE] for held in mirror.match(path)} == {"a": 6, "x": 6, "y": 6}


def test_what_a_slice_keeps_can_be_loaded_as_it_is() -> None:
    truth, mirror = Truth(), IndexMirror()
    truth.attach("a", MODEL, 0.0)
    for medium in ("GPU", "CPU"):
        truth.apply("a", Batch(0.0, [stored("abab", 0, medium), stored("aab", 0, medium)]), 0.0)
    truth.apply("a", Batch(0.0, [Removed([handles("abab")[-1]], "GPU")]), 0.0)
    blocks = truth._slices["a"].blocks
    mirror.load("a", blocks.owns, blocks.counts)
    assert {one.instance: one.blocks for one in mirror.match(chain("abab"))} == {"a": (3, 4, 4, 4)}


@pytest.mark.parametrize("tier", [Tier.GPU, Tier.CPU])
def test_an_answer_that_is_found_again_is_right_after_everything_that_may_happen(tier: Tier) -> None:
    """Instances reach differently far, so that answers are kept; each answer is what a mirror that was never asked says."""
    path = list(range(1, 13))
    told: list[Change] = []
    mirror = IndexMirror()

    def agrees() -> None:
        fresh = IndexMirror()
        fresh.apply(told)
        for some in (path, path[:6], [*path, 77, 78], [*path[:6], 99, *path[6:]], [99, *path]):
            for _ in range(2):
                mine = {held.instance: held.blocks for held in mirror.match(some)}
                assert mine == {held.instance: held.blocks for held in fresh.match(some)}

    def tell(*some: Change) -> None:
        told.extend(some)
        mirror.apply(some)
        agrees()

    for number in range(10):
        name = f"i{number}"
        tell(changes.Stored(name, Tier.GPU, 0, path[: number + 2]))
        tell(changes.Stored(name, tier, 0, path[number + 1 : number + 4]))
    assert mirror._chains, "these are kept"
    tell(changes.Removed("i9", Tier.GPU, [path[4]]))
    tell(changes.Stored("i9", Tier.GPU, 0, [path[4]]))
    tell(changes.Cleared("i5", 2, "a test"))
    tell(changes.Gone("i6"))
    mirror.sweep(1_000)
    agrees()
    tell(changes.Stored("new", Tier.GPU, 0, path[:9]))
    tell(changes.Stored("i5", Tier.GPU, 0, path[:3]))
    tell(changes.Hinted(MODEL, [77], 5.0))
    tell(changes.Expired(MODEL, [77]))


def test_a_gone_instance_is_forgotten_at_once_and_gives_its_bit_to_the_next() -> None:
    mirror = IndexMirror()
    for number in range(1_000):
        name = f"i{number}"
        mirror.apply([changes.Stored(name, Tier.GPU, 0, [1, 2, number + 10]), changes.Marked(name, True, "", 0.0)])
        assert [held.instance for held in mirror.match([1, 2])] == [name]
        mirror.apply([changes.Cleared(name, 2, "gone"), changes.Gone(name)])
        assert mirror.match([1, 2]) == ()
        assert mirror.instances() == ()
    while mirror.sweep(1):
        pass
    assert len(mirror) == 0
    assert mirror._gpu.bit_length() < 3 * 70, "a thousand came and went, a few at a time"


def test_blocks_beyond_the_limit_are_counted_and_not_credited() -> None:
    mirror = IndexMirror(limits=Limits(index_mirror_blocks=3))
    mirror.apply([changes.Stored("a", Tier.GPU, 0, [1, 2, 3, 4, 5])])
    mirror.load("b", [1, 9], [1, 1])
    assert (len(mirror), mirror.dropped) == (3, 3)
    assert mirror.match([1, 2, 3, 4]) == (Held("a", (3, 3, 3, 3)), Held("b", (1, 1, 1, 1)))


def test_without_redis_a_sink_keeps_the_mirrors_itself() -> None:
    heard: list[tuple[str, int]] = []
    sink = LocalSink(on_changes=lambda key, found: heard.append((key, len(sink.mirror(key)))))
    sink.offer(MODEL, [changes.Stored("a", Tier.GPU, 0, [1, 2])])
    sink.offer(MODEL, [])
    sink.offer("default/other", [changes.Stored("b", Tier.GPU, 0, [1])])
    assert sink.mirror(MODEL).match([1, 2]) == (Held("a", (2, 2, 2, 2)),)
    assert heard == [(MODEL, 2), ("default/other", 1)], "each is told after the mirror has it"
