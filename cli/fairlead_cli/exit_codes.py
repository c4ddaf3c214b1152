"""How a verb that asks somebody ends: what it was told is shown; what kept it from that goes to stderr and into its exit code."""

import sys
from collections.abc import Callable
from typing import Final, TypeVar

from fairlead_cli.errors import StackUnreachable

T = TypeVar("T")
OK: Final = 0
PROBLEM: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3


def run_query(
    verb: str, fetch: Callable[[], T], render: Callable[[T], str], *, misuse: tuple[type[Exception], ...] = ()
) -> int:
    """The exit code of ``verb``.

    ``ask`` raises NoStack where nobody answers, LookupError with words where nothing is known of it, and one of ``misuse`` for what
    its caller did wrong; other errors pass.
    """
    try:
        found = fetch()
    except misuse as error:
        return _report_failure(verb, error, USAGE)
    except StackUnreachable as error:
        return _report_failure(verb, error, UNREACHABLE)
    except LookupError as error:
        return _report_failure(verb, error.args[0], PROBLEM)
    print(render(found))
    return OK


def _report_failure(verb: str, why: object, code: int) -> int:
    print(f"fairlead {verb}: {why}", file=sys.stderr)
    return code
