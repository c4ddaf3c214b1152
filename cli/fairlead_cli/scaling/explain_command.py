"""``fairlead explain scale``, from its arguments to its exit code."""

import time

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.history.recorder import decode_record
from fairlead_cli.exit_codes import run_query
from fairlead_cli.scaling.autoscaler_client import find_autoscaler, query
from fairlead_cli.scaling.decision_text import render_look
from fairlead_cli.scaling.time_argument import parse_moment


def run(model: str | None, at: str | None, manage: str | None, as_json: bool) -> int:
    """Ask and print; the exit code."""

    def look() -> bytes:
        url = find_autoscaler(manage)
        when = None if at is None else parse_moment(at, time.time())
        return query(url, "/autoscaling/look", _query(url, model, when))

    def show(content: bytes) -> str:
        return (
            msgspec.json.format(content, indent=2).decode()
            if as_json
            else "\n".join(render_look(decode_record(content)))
        )

    return run_query("explain scale", look, show, misuse=(BadInput,))


def _query(url: str, name: str | None, when: float | None) -> dict[str, str]:
    """The question, with the model's whole name. Raises LookupError where it is not clear which is meant."""
    known = list(msgspec.json.decode(query(url, "/autoscaling", {}))["models"])
    found = [key for key in known if name in (None, key, key.partition("/")[2])]
    if len(found) != 1:
        there = ", ".join(known) or "none"
        asked = "several models are scaled; name one of" if found else "no such model is scaled; there is"
        raise LookupError(f"{asked}: {there}")
    return {"model": found[0]} | ({} if when is None else {"at": repr(when)})
