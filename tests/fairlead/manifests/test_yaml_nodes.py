"""YAML nodes with lines: dangerous and ambiguous text is refused with a place and a fix."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import FileProblem, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import YamlNode, decode_file, format_path, parse_documents, resolve_scalar

LIMITS = Limits()


def parse(text: str) -> list[YamlNode]:
    return parse_documents(text, file="t.yaml", limits=LIMITS)


def parse_error(text: str) -> FileProblem:
    with pytest.raises(ManifestError) as caught:
        parse(text)
    (problem,) = caught.value.problems
    return problem


def test_value_has_the_line_of_its_key() -> None:
    (node,) = parse("a:\n  b:\n    - x\n    - c: 1\n")
    assert node.locate(("a",)).line == 1
    assert node.locate(("a", "b")).line == 2
    assert node.locate(("a", "b", 1)).line == 4
    assert node.locate(("a", "b", 1, "c")).line == 4


def test_unknown_path_resolves_to_deepest_ancestor() -> None:
    (node,) = parse("a:\n  b: 1\n")
    assert node.locate(("a", "missing", 3)).line == 1


def test_multiple_documents_are_parsed_without_empty_ones() -> None:
    assert [node.to_python() for node in parse("---\na: 1\n---\n---\nb: 2\n...\n")] == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("off", False),
        ("Yes", True),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("007", 7),
        ("08", 8.0),
        ("0x10", 16),
        ("0o17", 15),
        ("-0b11", -3),
        ("0b12", "0b12"),
        ("0777777777777777777777777", 7.777777777777778e23),
        ("n", False),
        ("Y", True),
        ("1_000", 1000),
        ("1_0.5", 10.5),
        ("_1", "_1"),
        ("+12", 12),
        ("12e", "12e"),
        ("0x", "0x"),
    ],
)
def test_plain_scalars_match_kubectl(text: str, value: object) -> None:
    resolved = resolve_scalar(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_quoted_scalars_are_text() -> None:
    assert parse("a: \"1\"\nb: 'true'\nc: !!str 5\nd: |\n  7\n")[0].to_python() == {
        "a": "1",
        "b": "true",
        "c": "5",
        "d": "7\n",
    }


def test_keys_stay_text_even_if_they_look_like_numbers() -> None:
    assert parse("1: a\non: b\n")[0].to_python() == {"1": "a", "on": "b"}


def test_duplicate_key_is_refused_with_both_lines() -> None:
    problem = parse_error("a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert (problem.line, problem.field) == (4, "a.b")
    assert problem.message == 'the key "b" is already given on line 2'


def test_alias_repeats_its_anchor() -> None:
    assert parse("a: &x {n: 1}\nb: *x\n")[0].to_python() == {"a": {"n": 1}, "b": {"n": 1}}


def test_merge_key_gives_what_the_mapping_itself_lacks() -> None:
    (node,) = parse("a: &x {n: 1, m: 2}\nb:\n  n: 3\n  <<: *x\nc: {<<: [{o: 4}, *x, {o: 5, p: 6}]}\n")
    assert node.to_python()["b"] == {"n": 3, "m": 2}
    assert node.to_python()["c"] == {"n": 1, "m": 2, "o": 4, "p": 6}


@pytest.mark.parametrize("value", ["1", "[*x, 1]", "[[*x]]", "null"])
def test_merge_key_takes_mappings_only(value: str) -> None:
    problem = parse_error(f"a: &x {{n: 1}}\nb:\n  <<: {value}\n")
    assert (problem.line, problem.field, problem.message) == (3, "b", "<< merges mappings only")


def test_merges_count_what_they_expand_to() -> None:
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}"]
    lines += [f"a{n}: {{<<: *a0}}" for n in range(1, 1000)]
    assert "once aliases are expanded" in parse_error("\n".join(lines)).message


def test_items_of_a_list_are_documents() -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n- {a: 1}\n- null\n- apiVersion: v1\n  kind: PodList\n  items: [{b: 2}]\n"
    )
    documents = parse(f"{text}---\nc: 3\n")
    assert [node.to_python() for node in documents] == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert [node.line for node in documents] == [4, 8, 10]


def test_self_referencing_alias_is_refused() -> None:
    assert "names no anchor above it" in parse_error("a: &x [*x]").message


def test_alias_does_not_reach_the_previous_document() -> None:
    assert "names no anchor above it" in parse_error("a: &x 1\n---\nb: *x\n").message


def test_alias_bomb_is_refused_before_expansion() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    problem = parse_error("\n".join(lines))
    assert problem.line == 6  # 10^5 values fit, 10^6 do not
    assert "once aliases are expanded" in problem.message


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_without_recursion(opening: str) -> None:
    assert (
        "nested deeper" in parse_error(opening * 10_000).message
        or "key must be text" in parse_error(opening * 10_000).message
    )


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:x", "!mine", "!!binary", "!!set"])
def test_tags_are_refused(tag: str) -> None:
    problem = parse_error(f"a: {tag} x\n")
    assert problem.field == "a"
    assert "is not allowed" in problem.message


@pytest.mark.parametrize("text", ["{a: 1}: 2\n", "[a]: 2\n", "&x {a: 1}: 2\n", "a: &x [1]\n*x : 2\n"])
def test_non_text_key_is_refused(text: str) -> None:
    assert parse_error(text).message == "a key must be text"


def test_tab_indentation_is_named() -> None:
    problem = parse_error("a:\n\tb: 1\n")
    assert problem.line == 2
    assert problem.message == "the indentation contains a tab; YAML is indented with spaces"


def test_control_character_is_refused_with_its_line() -> None:
    problem = parse_error("a: 1\nb: \x07\n")
    assert problem.line == 2


def test_invalid_yaml_is_refused_with_its_line() -> None:
    problem = parse_error("a: 1\nb: [1, 2\nc: 3\n")
    assert problem.message.startswith("not YAML:")
    assert problem.line in (2, 3)


def test_invalid_utf8_is_refused_with_its_line() -> None:
    with pytest.raises(ManifestError) as caught:
        decode_file(b"a: 1\nb: \xff\n", file="t.yaml", limits=LIMITS)
    (problem,) = caught.value.problems
    assert (problem.line, problem.message) == (2, "byte 9 is not UTF-8 text")


def test_byte_order_mark_is_not_part_of_the_text() -> None:
    assert decode_file(b"\xef\xbb\xbfa: 1", file="t.yaml", limits=LIMITS) == "a: 1"


def test_file_over_the_limit_is_refused() -> None:
    with pytest.raises(ManifestError, match="more than 10"):
        decode_file(b"a" * 11, file="t.yaml", limits=Limits(fleet_file_bytes=10))


def test_paths_are_formatted_for_people() -> None:
    assert format_path(("spec", "pools", 0, "name")) == "spec.pools[0].name"
    assert format_path(()) == "(document)"


@given(st.text(max_size=200))
def test_any_text_parses_or_raises_a_manifest_error(text: str) -> None:
    problems: tuple[FileProblem, ...] = ()
    try:
        parse(text)
    except ManifestError as error:
        problems = error.problems
    assert all(problem.line >= 1 and problem.fix for problem in problems)


TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, JSON, min_size=1, max_size=4))
def test_json_is_parsed_as_itself(value: object) -> None:
    (node,) = parse(json.dumps(value))
    assert node.to_python() == value
