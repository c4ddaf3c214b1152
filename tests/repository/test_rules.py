"""The repository keeps its rules of layout and naming; exceptions may only become fewer."""

import ast

import pytest
from repository_rules import (
    RULES,
    banned_words,
    exceptions,
    findings,
    is_short_function,
    late_constants_of,
    page_resolves,
    path_tails,
    strongly_connected,
)

SHRINK = "run `.venv/bin/python tests/repository/repository_rules.py --shrink` and commit exceptions.json"


@pytest.mark.parametrize("rule", RULES)
def test_rule_has_no_new_finding(rule: str) -> None:
    excused = exceptions()[rule]
    new = {key: descriptions for key, descriptions in findings(rule).items() if len(descriptions) > excused.get(key, 0)}
    assert new == {}


@pytest.mark.parametrize("rule", RULES)
def test_no_exception_outlives_its_need(rule: str) -> None:
    current = findings(rule)
    stale = {key: count for key, count in exceptions()[rule].items() if len(current.get(key, ())) < count}
    assert stale == {}, SHRINK


def test_circle_is_found_and_a_chain_is_none() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert sorted(map(sorted, strongly_connected(graph))) == [["a"], ["b", "c"], ["d"]]


@pytest.mark.parametrize("span", ["tests/repository/", "gateway/fairlead_gateway/no.py", "routing/router.py", "no.py"])
def test_path_of_a_page_begins_at_the_root_or_at_the_page(span: str) -> None:
    assert page_resolves(span, "README.md", path_tails()) == (span == "tests/repository/")
    assert page_resolves("router.py", "README.md", path_tails())
    assert page_resolves("fairlead_gateway/routing/router.py", "gateway/README.md", path_tails())


@pytest.mark.parametrize("span", ["make lint", "namespace/name", "fairlead_gateway_requests_total", "dist/", "a.b"])
def test_other_words_of_a_page_are_no_paths(span: str) -> None:
    assert page_resolves(span, "README.md", path_tails())


def test_module_of_a_page_is_defined() -> None:
    assert page_resolves("fairlead_gateway.routing", "README.md", path_tails())
    assert not page_resolves("fairlead_gateway.teleport", "README.md", path_tails())


def test_glossary_bans_names_and_words() -> None:
    assert "berth" in banned_words("Banned names")
    assert "whoever" in banned_words("Banned in prose")
    assert banned_words("No such heading") == frozenset()


@pytest.mark.parametrize(
    ("text", "late"),
    [
        ("A = 1\nclass B: ...\n", []),
        ("class B: ...\nA = 1\n_C: int = 2\n", ["A", "_C"]),
        ("def b(): ...\nA = b()\nC = A\n", []),
        ("class B: ...\nPairs = dict[str, B]\nnames = 1\n", []),
    ],
)
def test_constant_behind_a_class_is_found_unless_it_needs_it(text: str, late: list[str]) -> None:
    assert late_constants_of(ast.parse(text)) == late


@pytest.mark.parametrize("decorator", ["", "@property\n", "@app.get('/')\n"])
@pytest.mark.parametrize(
    ("body", "is_short"), [("x = 1", True), ("x = 1\n    y = 2\n    z = 3", False), ("...", False)]
)
def test_function_is_short_unless_its_docstring_may_be_read_or_is_all(
    decorator: str, body: str, is_short: bool
) -> None:
    function = ast.parse(f'{decorator}def f():\n    """Does it."""\n    {body}\n').body[0]
    assert isinstance(function, ast.FunctionDef)
    assert is_short_function(function) == (is_short and "app" not in decorator)
