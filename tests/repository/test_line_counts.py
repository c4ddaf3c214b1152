"""Lines of code by package: the counter, and the record that holds it."""

import pytest
from line_counts import code_lines, count_packages, recorded

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


def test_no_package_has_more_lines_than_its_record() -> None:
    known = recorded()["now"]
    grown = {name: count - known[name] for name, count in count_packages().items() if count > known[name]}
    assert grown == {}, "take something out, or run tests/repository/line_counts.py --update and say why in the commit"
