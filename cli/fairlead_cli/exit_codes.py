"""Exit codes of all verbs, and a runner for verbs that query something and print the answer."""

import sys
from collections.abc import Callable
from typing import Final, TypeVar

from fairlead.errors import plain_text
from fairlead_cli.console import terminal_text
from fairlead_cli.errors import ClusterUnreachable, StackUnreachable, describe_error

T = TypeVar("T")
OK: Final = 0
PROBLEM: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3


def run_query(
    verb: str, fetch: Callable[[], T], render: Callable[[T], str], *, misuse: tuple[type[Exception], ...] = ()
) -> int:
    """Fetches, prints and returns the exit code of ``verb``.

    fetch: raises StackUnreachable or ClusterUnreachable when nothing answers. It raises LookupError
    with a message when nothing is known, and one of ``misuse`` for wrong usage; other errors pass.
    """
    try:
        answer = fetch()
    except misuse as error:
        return report_failure(verb, describe_error(error), USAGE)
    except (StackUnreachable, ClusterUnreachable) as error:
        return report_failure(verb, error, UNREACHABLE)
    except LookupError as error:
        return report_failure(verb, error.args[0], PROBLEM)
    print(terminal_text(render(answer)))
    return OK


def report_failure(verb: str, reason: object, code: int) -> int:
    """Prints the reason to stderr and returns the exit code."""
    print(plain_text(f"fairlead {verb}: {reason}"), file=sys.stderr)
    return code
