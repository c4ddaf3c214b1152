"""`onFailure` of a route in a fleet file: what it becomes, and messages about mistakes in it."""

from collections.abc import Callable

import pytest

from fairlead.errors import FileProblem
from fairlead.fleet.file.format import format_fleet_file, parse_fleet_file
from fairlead.routes.model import FailureKind, Fallback

TEXT = """\
models:
  - {name: big, instances: []}
  - {name: middle, instances: []}
  - {name: small, namespace: chat, allowedRoutes: ['*'], instances: []}
routes:
  - name: assistant
    targets: [{model: big}]
    onFailure:
      - {when: [Unavailable, NoCapacity], to: middle}
      - {when: [ContextTooLong], after: middle, to: chat/small}
"""


def test_fallbacks_are_read_and_written() -> None:
    fleet = parse_fleet_file(TEXT, file="f")
    unavailable = frozenset({FailureKind.UNAVAILABLE, FailureKind.NO_CAPACITY})
    assert fleet.routes["default/assistant"].fallbacks == (
        Fallback("default/middle", unavailable),
        Fallback("chat/small", frozenset({FailureKind.CONTEXT_TOO_LONG}), "default/middle"),
    )
    assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "message", "fix"),
    [
        ("to: chat/small", "to: chat/smal", 10, "routes[0].onFailure[1].to",
         'no model of this file is "chat/smal"', "did you mean chat/small?"),
        ("to: chat/small", "to: middle", 10, "routes[0].onFailure[1].to",
         "the fallbacks form a loop: default/middle → default/middle", "remove this entry"),
        ("to: chat/small", "to: big", 10, "routes[0].onFailure[1].to",
         "the fallbacks form a loop: default/big → default/middle → default/big", "or name with `after`"),
        ("to: chat/small", "to: default/big", 10, "routes[0].onFailure[1].to",
         "the fallbacks form a loop: default/big → default/middle → default/big", "or name with `after`"),
        ("after: middle, to: chat/small", "to: big", 10, "routes[0].onFailure[1].to",
         "the model is the only target of the route", "name another model"),
        ("after: middle", "after: chat/small", 10, "routes[0].onFailure[1].to",
         "the fallbacks form a loop: chat/small → chat/small", "remove this entry"),
        ("after: middle", "after: chat/tiny", 10, "routes[0].onFailure[1].after",
         "no request of the route goes to chat/tiny", "name a target"),
        ("ContextTooLong", "TooLong", 10, "routes[0].onFailure[1].when[0]", "TooLong", "ContextTooLong"),
        ("[ContextTooLong]", "[]", 10, "routes[0].onFailure[1].when", "must not be empty", "fill it"),
        ("[Unavailable, NoCapacity]", "[Unavailable, Unavailable]", 9, "routes[0].onFailure[0].when[1]",
         "is already given", ""),
    ],
)  # fmt: skip
def test_a_mistake_names_line_field_and_fix(
    old: str, new: str, line: int, field: str, message: str, fix: str, first_problem: Callable[[str], FileProblem]
) -> None:
    assert old in TEXT
    problem = first_problem(TEXT.replace(old, new))
    assert (problem.line, problem.field) == (line, field)
    assert message in problem.message
    assert fix in problem.fix
