"""Names of children: labels of at most 63 characters, and never two children with one name."""

import re

from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.render.names import MAX_GROUP_NAME_LENGTH, child_name

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
PARTS = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", fullmatch=True)
POOLS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


def test_short_name_is_unchanged() -> None:
    assert child_name("qwen3-8b", "main") == "qwen3-8b-main"


def test_long_name_ends_in_a_hash() -> None:
    name = child_name("m" * 63, "main")
    assert len(name) == 63
    assert re.fullmatch(r"m{56}-[0-9a-f]{6}", name)
    assert len(child_name("m" * 63, "main", max_length=MAX_GROUP_NAME_LENGTH)) == MAX_GROUP_NAME_LENGTH


def test_taken_name_ends_in_a_hash() -> None:
    name = child_name("a-b", "c", {"a-b-c"})
    assert re.fullmatch(r"a-b-c-[0-9a-f]{6}", name)


def test_invalid_labels_do_not_collide_with_valid_ones() -> None:
    assert child_name("qwen2.5", "main") != child_name("qwen2-5", "main")
    assert child_name("7b", "main").startswith("m-7b-main-")


def test_models_with_equal_joined_names_do_not_collide() -> None:
    first = child_name("a", "b-c")
    assert child_name("a-b", "c", {first}) != first


@given(PARTS, POOLS, st.booleans(), st.sampled_from([63, MAX_GROUP_NAME_LENGTH]))
def test_every_name_is_a_label(model: str, pool: str, taken: bool, longest: int) -> None:
    foreign = frozenset({child_name(model, pool, max_length=longest)}) if taken else frozenset()
    name = child_name(model, pool, foreign, max_length=longest)
    assert LABEL.fullmatch(name)
    assert len(name) <= longest
    assert name == child_name(model, pool, foreign, max_length=longest)
