"""The approximate prefix index against a plain model: same matches, capacity, tail before head."""

import gc
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.routing.prefix.cache_view import ApproximatePrefixIndex

ENDS = tuple(range(256, 256 * 41, 256))


def matched(mirror: ApproximatePrefixIndex, hashes: Sequence[int], ends: Sequence[int]) -> Mapping[str, int]:
    """Returns the cached bytes of the prompt by instance, without instances that have none."""
    match = mirror.match(tuple(hashes), ends)
    sizes = {name: match.bytes_at(mirror.bit_of(name)) for name in "abc"}
    return {name: size for name, size in sizes.items() if size}


def test_the_longest_prefix_of_each_instance_is_found() -> None:
    mirror = ApproximatePrefixIndex(1_000)
    mirror.add("a", (1, 2, 3), ENDS[:3], capacity=10_000)
    mirror.add("b", (1,), ENDS[:1], capacity=10_000)
    assert matched(mirror, (1, 2, 3, 4), ENDS[:4]) == {"a": 768, "b": 256}
    assert matched(mirror, (9, 2), ENDS[:2]) == {}
    assert matched(mirror, (), ()) == {}


def test_beyond_capacity_the_oldest_prompts_tail_goes_first() -> None:
    mirror = ApproximatePrefixIndex(1_000)
    mirror.add("a", (1, 2, 3), ENDS[:3], capacity=5 * 256)
    mirror.add("a", (7, 8, 9), ENDS[:3], capacity=5 * 256)
    assert matched(mirror, (1, 2, 3), ENDS[:3]) == {"a": 512}
    assert matched(mirror, (7, 8, 9), ENDS[:3]) == {"a": 768}


def test_use_keeps_a_prefix() -> None:
    mirror = ApproximatePrefixIndex(1_000)
    mirror.add("a", (1, 2), ENDS[:2], capacity=4 * 256)
    mirror.add("a", (7, 8), ENDS[:2], capacity=4 * 256)
    mirror.add("a", (1, 2), ENDS[:2], capacity=4 * 256)
    mirror.add("a", (5,), ENDS[:1], capacity=4 * 256)
    assert matched(mirror, (1, 2), ENDS[:2]) == {"a": 512}
    assert matched(mirror, (7, 8), ENDS[:2]) == {"a": 256}


def test_reserved_bytes_evict_blocks_and_are_evicted() -> None:
    mirror = ApproximatePrefixIndex(1_000)
    mirror.add("a", (1, 2, 3), ENDS[:3], capacity=1_024)
    mirror.reserve("a", 512, capacity=1_024)
    assert matched(mirror, (1, 2, 3), ENDS[:3]) == {"a": 512}
    mirror.add("a", (7, 8), ENDS[:2], capacity=1_024)
    assert matched(mirror, (1, 2, 3), ENDS[:3]) == {}
    mirror.add("a", (1, 2), ENDS[:2], capacity=1_024)
    assert matched(mirror, (7, 8), ENDS[:2]) == matched(mirror, (1, 2), ENDS[:2]) == {"a": 512}


def test_an_instance_that_is_forgotten_holds_nothing_and_its_place_is_reused() -> None:
    mirror = ApproximatePrefixIndex(1_000)
    mirror.add("a", (1, 2), ENDS[:2], capacity=10_000)
    bit = mirror.register("a")
    mirror.remove_instance("a")
    mirror.remove_instance("never seen")
    mirror.add("b", (5,), ENDS[:1], capacity=10_000)
    assert (mirror.bit_of("a"), mirror.bit_of("b")) == (0, bit)
    assert matched(mirror, (1,), ENDS[:1]) == {}
    assert matched(mirror, (5,), ENDS[:1]) == {"b": 256}
    assert len(mirror) == 1


def test_what_is_dropped_is_gone_without_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        mirror = ApproximatePrefixIndex(4)
        for number in range(20):
            mirror.add("a", (1, number), ENDS[:2], capacity=1_024)
            mirror.reserve("a", 300, capacity=1_024)
        mirror.remove_instance("a")
        assert gc.collect() == 0
    finally:
        gc.enable()


class PlainMirror:
    """The same by the letter: every instance has an order of its blocks."""

    def __init__(self, blocks_most: int) -> None:
        self.most = blocks_most
        self.held: dict[str, OrderedDict[object, int]] = {name: OrderedDict() for name in "abc"}

    def add(self, name: str, hashes: Sequence[object], ends: Sequence[int], capacity: int) -> None:
        """Tail first, head last."""
        held = self.held[name]
        for index in reversed(range(len(hashes))):
            held[hashes[index]] = ends[index] - (ends[index - 1] if index else 0)
            held.move_to_end(hashes[index])
        while held and (sum(held.values()) > capacity or len(held) > self.most):
            held.popitem(last=False)

    def matched(self, hashes: Sequence[int], ends: Sequence[int]) -> Mapping[str, int]:
        """Block by block from the start."""
        matches: dict[str, int] = {}
        for name, held in self.held.items():
            for digest, end in zip(hashes, ends, strict=True):
                if digest not in held:
                    break
                matches[name] = end
        return matches


TEXTS = st.text("xy", max_size=9)
STEPS = st.lists(
    st.tuples(st.sampled_from(["add"] * 4 + ["occupy", "drop", "forget"]), st.sampled_from("abc"), TEXTS), max_size=60
)


def chain(text: str) -> tuple[int, ...]:
    """Hashes as of a real prompt: equal exactly where the texts are equal up to there."""
    return tuple(int(text[: index + 1].replace("x", "1").replace("y", "2")) for index in range(len(text)))


@given(STEPS, st.integers(256, 256 * 20), st.sampled_from([7, 10_000]), st.lists(TEXTS, max_size=9))
def test_it_agrees_with_the_plain_one(
    steps: list[tuple[str, str, str]], capacity: int, most: int, prompts: list[str]
) -> None:
    mirror, plain = ApproximatePrefixIndex(most), PlainMirror(most)
    for number, (action, name, text) in enumerate(steps):
        hashes, ends = chain(text), ENDS[: len(text)]
        if action == "add":
            mirror.add(name, hashes, ends, capacity=capacity)
            plain.add(name, hashes, ends, capacity)
        elif action == "occupy":
            mirror.reserve(name, 300, capacity=capacity)
            plain.add(name, (f"output {number}",), (300,), capacity)
        elif action == "drop":
            mirror.remove(name, hashes[-1:])
            for digest in [item for item in plain.held[name] if text and str(item).startswith(str(hashes[-1]))]:
                del plain.held[name][digest]
        else:
            mirror.remove_instance(name)
            plain.held[name].clear()
        assert matched(mirror, hashes, ends) == plain.matched(hashes, ends)
        for each, held in mirror._instances.items():
            assert held.size == sum(plain.held[each].values()) <= capacity
            assert held.blocks == len(plain.held[each]) <= most
            assert set(held.runs) == {item for item in plain.held[each] if isinstance(item, int)}
    assert len(mirror) == len({item for held in plain.held.values() for item in held if isinstance(item, int)})
    for text in prompts:
        assert matched(mirror, chain(text), ENDS[: len(text)]) == plain.matched(chain(text), ENDS[: len(text)])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 9), max_size=6)), max_size=40))
def test_equal_hashes_of_different_prompts_are_survived(steps: list[tuple[str, list[int]]]) -> None:
    mirror = ApproximatePrefixIndex(6)
    for name, hashes in steps:
        mirror.add(name, tuple(hashes), ENDS[: len(hashes)], capacity=2_048)
        mirror.match(tuple(hashes), ENDS[: len(hashes)])
        assert mirror._instances[name].size <= 2_048
        assert mirror._instances[name].blocks <= 6
    for name in "ab":
        mirror.remove_instance(name)
    assert len(mirror) == 0
