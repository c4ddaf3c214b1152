"""`shadow` of a route in a fleet file: what it becomes, and messages about mistakes in it."""

from collections.abc import Callable

import pytest

from fairlead.errors import FileProblem
from fairlead.fleet.file.format import format_fleet_file, parse_fleet_file
from fairlead.routes.model import Shadow

TEXT = """\
models:
  - {name: big, instances: []}
  - {name: next, namespace: chat, allowedRoutes: [default], instances: []}
routes:
  - name: assistant
    targets: [{model: big}]
    shadow: {model: chat/next, percent: 20}
"""


def test_shadow_is_read_and_written() -> None:
    fleet = parse_fleet_file(TEXT, file="f")
    assert fleet.routes["default/assistant"].shadow == Shadow("chat/next", 20)
    assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet


def test_all_conversations_are_copied_by_default() -> None:
    fleet = parse_fleet_file(TEXT.replace(", percent: 20", ""), file="f")
    assert fleet.routes["default/assistant"].shadow == Shadow("chat/next", 100)


@pytest.mark.parametrize(
    ("old", "new", "field", "message", "fix"),
    [
        ("chat/next, p", "chat/nxt, p", "routes[0].shadow.model", 'no model of this file is "chat/nxt"',
         "did you mean chat/next?"),
        ("chat/next, p", "big, p", "routes[0].shadow.model", "the model is the only target of the route",
         "name another model"),
        ("percent: 20", "percent: 101", "routes[0].shadow.percent", "101", "100"),
    ],
)  # fmt: skip
def test_mistake_is_reported_with_its_line_field_and_fix(
    old: str, new: str, field: str, message: str, fix: str, first_problem: Callable[[str], FileProblem]
) -> None:
    assert old in TEXT
    problem = first_problem(TEXT.replace(old, new))
    assert (problem.line, problem.field) == (7, field)
    assert message in problem.message
    assert fix in problem.fix
