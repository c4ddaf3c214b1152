"""The repository keeps its rules of layout and naming; exceptions may only become fewer."""

import pytest
from repository_rules import RULES, banned_words, exceptions, findings, strongly_connected

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


def test_glossary_bans_names_and_words() -> None:
    assert "berth" in banned_words("Banned names")
    assert "whoever" in banned_words("Banned in prose")
    assert banned_words("No such heading") == frozenset()
