"""Lines of code by package: the counter, and the ceilings that hold it."""

import subprocess
from pathlib import Path

import pytest
from line_counts import GROUPS, ceilings, code_lines, count_packages, group_counts

SOURCE = '''"""A module.

With a docstring."""

from x import y  # a comment

LIMIT = 5
"""The limit of a test."""


def load(path: str) -> str:
    """Returns a text."""
    # a comment alone
    text = """
    # no comment
    """
    return send(
        text,
        "# no comment",
        """alone, and an argument"""
    )
'''


def test_blank_lines_comments_and_docstrings_do_not_count() -> None:
    assert code_lines(SOURCE) == 11


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("cdef int twice(int n) nogil:\n    return 2 * n\n", 2),
        ("x = 'it''s' # '''\ny = 1\n", 2),
        ('def f():\n    """One line."""\n', 1),
        ('x = [\n    """a"""\n]\n', 3),
    ],
)
def test_lines_of_sources(text: str, count: int) -> None:
    assert code_lines(text) == count


def test_no_group_has_more_lines_than_its_ceiling() -> None:
    groups, most = group_counts(count_packages()), ceilings()
    assert most.keys() == GROUPS.keys()
    above = {group: count - most[group] for group, count in groups.items() if count > most[group]}
    assert above == {}, "take out as much as you add; tests/repository/line_counts.py shows where lines are"


def test_data_of_product_and_tools_counts_and_what_programs_write_does_not(tmp_path: Path) -> None:
    files = {
        "gateway/table.json": "{\n\n}\n",
        "gateway/page.js": "x\n",
        "sim/fairlead_sim/a.yaml": "a: 1\n",
        "bench/results/a.json": "1\n2\n",
        "tests/golden.yaml": "a\nb\n",
        "e2e/requirements.txt": "a\n",
        "fairlead/manifests/engine_flags.json": "1\n",
        "docs/a.json": "1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert {name: count for name, count in count_packages(tmp_path).items() if count} == {"gateway": 3, "sim": 1}
