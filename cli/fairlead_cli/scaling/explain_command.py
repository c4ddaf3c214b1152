"""``fairlead explain scaling``: scaling of a model."""

import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead_autoscaler.history.recorder import decode_record
from fairlead_cli.exit_codes import run_query
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.scaling.autoscaler_client import AutoscalerEndpoint, AutoscalerSource, open_autoscaler, query
from fairlead_cli.scaling.decision_text import render_look
from fairlead_cli.scaling.time_argument import parse_moment
from fairlead_cli.target import ModelFlag, qualified_name

_AUTOSCALER = AutoscalerSource()


def explain_scaling(
    model: ModelFlag = None,
    *,
    at: Annotated[
        str | None, Parameter(help="The time to explain: 5m (ago), 14:05, an ISO date and time, or Unix seconds.")
    ] = None,
    source: Annotated[AutoscalerSource, Parameter(name="*")] = _AUTOSCALER,
    output: OutputFlag = "table",
) -> int:
    """Explain why a model has as many replicas as it has.

    Shows the autoscaler's observation, the inputs of its decision line by line, the rule, and
    whether the decision was written.

    Exits 0 with an answer, 1 when nothing is known of the model, 2 on wrong usage, 3 when no
    autoscaler can be reached.
    """
    name = qualified_name(model, source.cluster.namespace)

    def fetch() -> tuple[str, bytes]:
        with open_autoscaler(source.autoscaler, source.cluster) as endpoint:
            when = None if at is None else parse_moment(at, time.time())
            return endpoint.source, query(endpoint, "/autoscaling/look", _query(endpoint, name, when))

    def show(answer: tuple[str, bytes]) -> str:
        origin, content = answer
        if is_document(output):
            return format_document(content, output)
        return "\n".join([*render_look(decode_record(content)), f"read from the autoscaler of {origin}"])

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
