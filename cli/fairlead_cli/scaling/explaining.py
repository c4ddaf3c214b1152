"""``fairlead explain scale``, from its arguments to its exit code."""

import sys
import time

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.recording import look_of
from fairlead_cli.errors import NoStack
from fairlead_cli.scaling.asking import ask, autoscaler, moment
from fairlead_cli.scaling.telling import told

OK, PROBLEM, USAGE, UNREACHABLE = 0, 1, 2, 3


def run(model: str | None, at: str | None, manage: str | None, as_json: bool) -> int:
    """Ask and print; the exit code."""
    try:
        url = autoscaler(manage)
        when = None if at is None else moment(at, time.time())
        content = ask(url, "/autoscaling/look", _query(url, model, when))
    except BadInput as error:
        print(f"fairlead explain scale: {error}", file=sys.stderr)
        return USAGE
    except NoStack as error:
        print(f"fairlead explain scale: {error}", file=sys.stderr)
        return UNREACHABLE
    except LookupError as error:
        print(f"fairlead explain scale: {error.args[0]}", file=sys.stderr)
        return PROBLEM
    if as_json:
        print(msgspec.json.format(content, indent=2).decode())
    else:
        print("\n".join(told(look_of(content))))
    return OK


def _query(url: str, name: str | None, when: float | None) -> dict[str, str]:
    """The question, with the model's whole name. Raises LookupError where it is not clear which is meant."""
    known = list(msgspec.json.decode(ask(url, "/autoscaling", {}))["models"])
    found = [key for key in known if name in (None, key, key.partition("/")[2])]
    if len(found) != 1:
        there = ", ".join(known) or "none"
        asked = "several models are scaled; name one of" if found else "no such model is scaled; there is"
        raise LookupError(f"{asked}: {there}")
    return {"model": found[0]} | ({} if when is None else {"at": repr(when)})
