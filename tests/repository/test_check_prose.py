"""The prose checker finds what the style guide forbids, and nothing in plain prose."""

import re
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.module_files import load_module

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_prose.py"
LONG = " ".join(["word"] * 26)


@pytest.fixture(scope="module")
def checker() -> Any:
    return load_module("check_prose", SCRIPT)


def rules(checker: Any, text: str, *, page: bool = False) -> list[str]:
    prose = checker.Prose("a.md" if page else "a.py", re.compile(r"\bwhoever\b", re.IGNORECASE))
    if page:
        checker.check_page(text, prose)
    else:
        checker.check_python("a.py", text, prose)
    return [finding.rule for finding in prose.findings]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('def size():\n    """What it is."""', "opening"),
        ('def size():\n    """``name`` is whose."""', "opening"),
        ('def size() -> int:\n    """Whether there is room for more of them."""', "opening"),
        ('def size():\n    """Its size."""', "empty"),
        ('LIMIT = "x"\n"""Once."""', "empty"),
        ("x = 1  # for whoever reads", "word"),
        ('raise Error("for whoever reads")', "word"),
        ('def size():\n    """For whoever reads."""', "word"),
        (f'def size():\n    """{LONG}."""', "sentence"),
        (f"# {'word ' * 20}word", "columns"),
    ],
)
def test_finding_in_code(checker: Any, text: str, rule: str) -> None:
    assert rule in rules(checker, text)


@pytest.mark.parametrize(
    "text",
    [
        'def size():\n    """Returns the size of ``whoever``, in bytes."""',
        'def has_room() -> bool:\n    """Whether a request fits."""',
        'name = """\nWhat whoever\n"""',
        f'"""Usage.\n\n    {LONG}\n"""',
    ],
)
def test_no_finding_in_plain_code(checker: Any, text: str) -> None:
    assert "opening" not in rules(checker, text)
    assert "sentence" not in rules(checker, text)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Of the requests three wait.", "opening"),
        ("Whose turn it is comes first.", "opening"),
        (f"{LONG}.", "sentence"),
        ("word " * 21, "columns"),
        ("For whoever reads.", "word"),
    ],
)
def test_finding_in_page(checker: Any, text: str, rule: str) -> None:
    assert rule in rules(checker, text, page=True)


@pytest.mark.parametrize(
    "text", ["Who may call?", f"| {LONG} |", f"```\n{LONG} whoever\n```", "# What whoever needs", "Run `whoever`."]
)
def test_no_finding_in_plain_page(checker: Any, text: str) -> None:
    assert rules(checker, text, page=True) == []
