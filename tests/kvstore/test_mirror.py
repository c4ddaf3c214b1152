"""The mirror against a plain model of it: the same matches, within capacity, tail before head."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_kvstore.mirror import PrefixMirror

ENDS = tuple(range(256, 256 * 41, 256))


def test_the_longest_prefix_of_each_instance_is_found() -> None:
    mirror = PrefixMirror(1_000)
    mirror.add("a", (1, 2, 3), ENDS[:3], capacity=10_000)
    mirror.add("b", (1,), ENDS[:1], capacity=10_000)
    assert mirror.matched((1, 2, 3, 4), ENDS[:4]) == {"a": 768, "b": 256}
    assert mirror.matched((9, 2), ENDS[:2]) == {}
    assert mirror.matched((), ()) == {}


def test_beyond_capacity_the_oldest_prompts_tail_goes_first() -> None:
    mirror = PrefixMirror(1_000)
    mirror.add("a", (1, 2, 3), ENDS[:3], capacity=5 * 256)
    mirror.add("a", (7, 8, 9), ENDS[:3], capacity=5 * 256)
    assert mirror.matched((1, 2, 3), ENDS[:3]) == {"a": 512}
    assert mirror.matched((7, 8, 9), ENDS[:3]) == {"a": 768}


def test_use_keeps_a_prefix() -> None:
    mirror = PrefixMirror(1_000)
    mirror.add("a", (1, 2), ENDS[:2], capacity=4 * 256)
    mirror.add("a", (7, 8), ENDS[:2], capacity=4 * 256)
    mirror.add("a", (1, 2), ENDS[:2], capacity=4 * 256)
    mirror.add("a", (5,), ENDS[:1], capacity=4 * 256)
    assert mirror.matched((1, 2), ENDS[:2]) == {"a": 512}
    assert mirror.matched((7, 8), ENDS[:2]) == {"a": 256}


def test_an_instance_that_is_forgotten_holds_nothing_and_its_place_is_reused() -> None:
    mirror = PrefixMirror(1_000)
    mirror.add("a", (1, 2), ENDS[:2], capacity=10_000)
    mirror.forget("a")
    mirror.forget("never seen")
    mirror.add("b", (5,), ENDS[:1], capacity=10_000)
    assert mirror.matched((1,), ENDS[:1]) == {}
    assert mirror.matched((5,), ENDS[:1]) == {"b": 256}
    assert len(mirror) == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "drop", "forget"]),
        st.sampled_from("abc"),
        st.lists(st.integers(1, 30), max_size=8, unique=True),
    ),
    max_size=40,
)


@given(STEPS, st.lists(st.integers(1, 30), min_size=1, max_size=8, unique=True))
def test_it_agrees_with_sets_when_nothing_is_evicted(
    steps: list[tuple[str, str, list[int]]], prompt: list[int]
) -> None:
    mirror, model = PrefixMirror(10_000), {name: set[int]() for name in "abc"}
    for action, name, chain in steps:
        if action == "add":
            mirror.add(name, chain, ENDS[: len(chain)], capacity=10**9)
            model[name] |= set(chain)
        elif action == "drop":
            mirror.drop(name, chain)
            model[name] -= set(chain)
        else:
            mirror.forget(name)
            model[name].clear()
    expected = {}
    for name, held in model.items():
        length = next((index for index, digest in enumerate(prompt) if digest not in held), len(prompt))
        if length:
            expected[name] = ENDS[length - 1]
    assert mirror.matched(prompt, ENDS[: len(prompt)]) == expected


@given(STEPS, st.integers(256, 4_096))
def test_an_instance_never_holds_more_than_its_capacity(steps: list[tuple[str, str, list[int]]], capacity: int) -> None:
    mirror = PrefixMirror(10)
    for _, name, chain in steps:
        mirror.add(name, chain, ENDS[: len(chain)], capacity=capacity)
        assert mirror._bytes[name] <= capacity
        assert mirror._bytes[name] == sum(mirror._held[name].values())
        assert len(mirror._held[name]) <= 10
