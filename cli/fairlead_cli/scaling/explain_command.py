"""``fairlead explain scaling``: from the options to the exit code."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.history.recorder import decode_record
from fairlead_cli.exit_codes import run_query
from fairlead_cli.output import OutputFormat, format_document, is_document
from fairlead_cli.scaling.autoscaler_client import AutoscalerEndpoint, open_autoscaler, query
from fairlead_cli.scaling.decision_text import render_look
from fairlead_cli.scaling.time_argument import parse_moment
from fairlead_cli.target import ClusterOptions


@dataclass(frozen=True, slots=True)
class ScalingQuery:
    """Query of ``explain scaling``.

    model: a name, with or without namespace; None for the only model.
    at: a time as text (``parse_moment``); None for the last decision.
    """

    model: str | None
    at: str | None


def run(asked: ScalingQuery, autoscaler: str | None, cluster: ClusterOptions, output: OutputFormat) -> int:
    """Queries the autoscaler, prints the decision and returns the exit code."""

    def fetch() -> tuple[str, bytes]:
        with open_autoscaler(autoscaler, cluster) as endpoint:
            when = None if asked.at is None else parse_moment(asked.at, time.time())
            return endpoint.source, query(endpoint, "/autoscaling/look", _query(endpoint, asked.model, when))

    def show(answer: tuple[str, bytes]) -> str:
        source, content = answer
        if is_document(output):
            return format_document(content, output)
        return "\n".join([*render_look(decode_record(content)), f"read from the autoscaler of {source}"])

    return run_query("explain scaling", fetch, show, misuse=(BadInput,))


def _query(endpoint: AutoscalerEndpoint, model: str | None, moment: float | None) -> dict[str, str]:
    """Returns the query with the full model name. Raises LookupError when the name is ambiguous or
    unknown.
    """
    known = list(msgspec.json.decode(query(endpoint, "/autoscaling", {}))["models"])
    found = [key for key in known if model in (None, key, key.partition("/")[2])]
    if len(found) != 1:
        raise LookupError(f"{_selection_problem(model, known, found)} (read from the autoscaler of {endpoint.source})")
    return {"model": found[0]} | ({} if moment is None else {"at": repr(moment)})


def _selection_problem(model: str | None, known: Sequence[str], found: Sequence[str]) -> str:
    """Returns why a name does not select one model, and what to do.

    found: those of the known models that the name fits.
    """
    if found:
        return f"MODEL: name one model with its namespace, of: {', '.join(found)}"
    if known:
        subject = "no model" if model is None else f"the model {model}"
        return f"MODEL: {subject} is not autoscaled; these are: {', '.join(known)}"
    return "no model is autoscaled: set `autoscaling: {mode: Auto}`, or Advise, and a pool's maxReplicas above its minReplicas"
