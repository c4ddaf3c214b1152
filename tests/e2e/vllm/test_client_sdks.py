"""The checks of client SDKs: equal in both languages, pinned, and judged by what they say."""

import json
import re
from pathlib import Path

from e2e.vllm.scenarios.client_sdks import compare, judge_budget

SDKS = Path(__file__).parents[3] / "e2e" / "vllm" / "sdks"


def test_both_languages_make_the_same_checks() -> None:
    text = (SDKS / "checks.py").read_text()
    python = [
        name.replace("_", " ") for name in re.findall(r"^def ((?:messages|responses|chat)_\w+)", text, re.MULTILINE)
    ]
    node = re.findall(r'^  "([\w ]+)": async', (SDKS / "checks.mjs").read_text(), re.MULTILINE)
    assert python == node
    assert len(python) >= 20


def test_packages_for_node_have_hashes_and_no_address() -> None:
    packages = json.loads((SDKS / "package-lock.json").read_text())["packages"]
    pinned = json.loads((SDKS / "package.json").read_text())["dependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in pinned} == pinned
    for name, package in packages.items():
        assert "resolved" not in package
        assert not name or package["integrity"].startswith("sha512-"), name


def test_packages_for_python_are_pinned() -> None:
    lines = (SDKS / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if not line.startswith("#"))


def test_a_check_holds_if_it_says_the_same_both_ways() -> None:
    line = {"name": "x", "said": {"text": "a", "tokens": [1, 2]}}
    other = {"name": "x", "said": {"text": "b", "tokens": [1, 2]}}
    refused = {"name": "x", "failed": ["NotFoundError", 404], "why": "no"}
    assert compare(line, line)["holds"]
    assert not compare(line, other)["holds"]
    assert compare(line, other, ("text",))["holds"]
    assert not compare(line, refused)["holds"]
    assert compare(refused, {**refused, "why": "in other words"}) == {"holds": True, "engine_passes": False}


def test_a_budget_holds_if_it_stops_at_its_amount_in_the_dialect() -> None:
    said = {"answered": 13, "tokens": 481, "raised": ["RateLimitError", 429, "rate_limit_error"], "retry_after": True}
    assert judge_budget("messages", said)["holds"]
    assert not judge_budget("chat", said)["holds"]
    assert not judge_budget("messages", {**said, "tokens": 4_810})["holds"]
    assert not judge_budget("messages", {**said, "tokens": 37, "answered": 1})["holds"]
    assert not judge_budget("messages", {**said, "retry_after": False})["holds"]
