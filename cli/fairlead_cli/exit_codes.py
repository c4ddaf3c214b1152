"""Exit codes of all verbs, and a runner for verbs that query something and print the answer.

FairleadError
├── UnusableIndex            the index in Redis cannot be used; exit code 1
├── BadInput
│   └── PortInUse            the address of a flag is taken
└── Unavailable
    ├── StartFailed          a process of the stack does not start
    ├── StackUnreachable     no stack or gateway answers; exit code 3
    ├── ClusterUnreachable   no API server answers; exit code 3
    └── IndexUnreachable     no Redis answers; exit code 3
"""

import sys
from collections.abc import Callable
from typing import Final, TypeVar

from fairlead.errors import BadInput, FairleadError, Unavailable, plain_text
from fairlead_cli.console import terminal_text

T = TypeVar("T")
OK: Final = 0
PROBLEM: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

_NAMED_FIELDS: Final = ("--", "spec.", "metadata.")


def run_query(fetch: Callable[[], T], render: Callable[[T], str]) -> int:
    """Fetches, prints and returns the exit code.

    fetch: raises StackUnreachable or ClusterUnreachable when nothing answers. It raises LookupError
    with a message when nothing is known; other errors pass.
    """
    try:
        answer = fetch()
    except (StackUnreachable, ClusterUnreachable) as error:
        return report_failure(error, UNREACHABLE)
    except LookupError as error:
        return report_failure(error.args[0], PROBLEM)
    print(terminal_text(render(answer)))
    return OK


def report_failure(reason: object, code: int) -> int:
    print(plain_text(f"fairlead: {reason}"), file=sys.stderr)
    return code


class UnusableIndex(FairleadError):
    """Raised when the index in Redis is damaged, of another release, or not written yet."""


class PortInUse(BadInput):
    """Raised when the address that ``field`` (a flag) names is taken."""


class StartFailed(Unavailable):
    """Raised when a process of the stack ended before it was ready, also after restarts."""


class StackUnreachable(Unavailable):
    """Raised when no running stack was found, or it does not answer."""


class ClusterUnreachable(Unavailable):
    """Raised when no API server answers; the message names its kubeconfig, the hint what to do."""


class IndexUnreachable(Unavailable):
    """Raised when no Redis answers; the message names its address without the password."""


def describe_error(error: Exception) -> str:
    """Returns an error as text.

    It begins with the option, or the field of a manifest, that the error is about, unless the
    message names it.
    """
    field = error.field if isinstance(error, BadInput) else None
    text = str(error)
    return f"{field}: {text}" if field is not None and field.startswith(_NAMED_FIELDS) and field not in text else text
