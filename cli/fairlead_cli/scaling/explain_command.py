"""``fairlead explain scale``: from the options to the exit code."""

import time

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.history.recorder import decode_record
from fairlead_cli.exit_codes import run_query
from fairlead_cli.scaling.autoscaler_client import find_autoscaler, query
from fairlead_cli.scaling.decision_text import render_look
from fairlead_cli.scaling.time_argument import parse_moment


def run(model: str | None, at: str | None, manage: str | None, as_json: bool) -> int:
    """Queries the autoscaler, prints the decision and returns the exit code."""

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


def _query(url: str, model: str | None, moment: float | None) -> dict[str, str]:
    """Returns the query with the full model name. Raises LookupError when the name is ambiguous or
    unknown.
    """
    known = list(msgspec.json.decode(query(url, "/autoscaling", {}))["models"])
    found = [key for key in known if model in (None, key, key.partition("/")[2])]
    if len(found) != 1:
        names = ", ".join(known) or "none"
        message = "several models are scaled; name one of" if found else "no such model is scaled; there is"
        raise LookupError(f"{message}: {names}")
    return {"model": found[0]} | ({} if moment is None else {"at": repr(moment)})
