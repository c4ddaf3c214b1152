"""``fairlead requests``: a table of requests, from what gateways keep of them in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final

from cyclopts import Parameter

from fairlead import management_api as api
from fairlead.errors import BadInput
from fairlead_cli.exit_codes import run_query
from fairlead_cli.explain.wait_parts import wait_parts, waited_seconds
from fairlead_cli.formatting import (
    UNKNOWN,
    align_columns,
    format_count,
    format_seconds,
    pluralize,
    short_instance_name,
)
from fairlead_cli.management.client import GatewaySource, ManagementClient, open_endpoints
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ModelFlag, qualified_name

MAX_REQUESTS: Final = 500
"""Limit: requests of one list."""
_SOURCE = GatewaySource()


@dataclass(frozen=True, slots=True)
class RequestSelection:
    """Flags that select requests."""

    slow: Annotated[
        bool, Parameter(negative=(), help="The slowest of the last hour first, by the wait for the first token.")
    ] = False
    failed: Annotated[bool, Parameter(negative=(), help="Only requests that failed, the newest first.")] = False
    tenant: Annotated[str | None, Parameter(help="Only requests of this tenant.")] = None
    limit: Annotated[int, Parameter(help=f"So many requests at most, up to {MAX_REQUESTS}.")] = 20

    @property
    def kind(self) -> str:
        """The name of this selection in the management API. Raises BadInput."""
        if self.slow and self.failed:
            raise BadInput("--slow and --failed exclude each other", field="--failed", hint="give one of them")
        if not 1 <= self.limit <= MAX_REQUESTS:
            raise BadInput(f"{self.limit} is not between 1 and {MAX_REQUESTS}", field="--limit", hint="--limit 20")
        return "slow" if self.slow else "failed" if self.failed else "latest"


_ALL = RequestSelection()


def requests(
    model: ModelFlag = None,
    *,
    selection: Annotated[RequestSelection, Parameter(name="*")] = _ALL,
    source: Annotated[GatewaySource, Parameter(name="*")] = _SOURCE,
    output: OutputFlag = "table",
) -> int:
    """List the last requests, the slow ones or the failed ones, each with its main cause.

    Each worker of a gateway keeps its last 4,096 requests. It keeps 512 failed ones for longer, and
    the 48 slowest of each five minutes for an hour. They have no prompt in them. The ids are for
    explain request. Requests with a wrong body, key or model never get that far: see the metrics,
    or the access log. The largest part of a wait is an estimate where it says about.

    Exits 0 with a list, 1 when no request matches, 2 on wrong usage, 3 when no gateway can be
    reached.
    """
    kind = selection.kind
    wanted = qualified_name(model, source.cluster.namespace)

    def fetch() -> list[api.DecisionOut]:
        with open_endpoints(source.manage, source.cluster) as endpoints:
            name = None if wanted is None else endpoints[0].qualify_model(wanted)
            ask = partial(
                ManagementClient.decisions, limit=selection.limit, model=name, kind=kind, tenant=selection.tenant
            )
            found = [decision for endpoint in endpoints for decision in endpoint.query(ask).decisions]
            asked = ", ".join(endpoint.name for endpoint in endpoints)
        if not found:
            raise LookupError(f"no request matches at {asked}")
        found.sort(key=_waited if kind == "slow" else _wall, reverse=True)
        return found[: selection.limit]

    def show(found: list[api.DecisionOut]) -> str:
        if is_document(output):
            return format_document(found, output)
        return render_requests(found, is_wide=output == "wide")

    return run_query(fetch, show)


def _wall(decision: api.DecisionOut) -> float:
    return decision.wall


def _waited(decision: api.DecisionOut) -> float:
    return 0.0 if decision.outcome is None else waited_seconds(decision.outcome)


def render_requests(found: Sequence[api.DecisionOut], *, is_wide: bool = False) -> str:
    """Returns a table with one row for each request.

    is_wide: also the tenant, the instance and the tokens.
    """
    header = ["TIME (UTC)", "REQUEST", "MODEL", "STATUS", "FIRST TOKEN", "TOTAL", "SLO"]
    header += ["TENANT", "INSTANCE", "PROMPT", "CACHED", "OUTPUT"] if is_wide else []
    rows = [[*header, "MOST OF IT"], *([*_cells(decision, is_wide), main_cause(decision)] for decision in found)]
    verdicts = [one.outcome.within_objective for one in found if one.outcome is not None]
    missed = f", {verdicts.count(False)} missed the SLO" if any(verdict is not None for verdict in verdicts) else ""
    return f"{align_columns(rows)}\n{pluralize(len(found), 'request')}{missed} · why: fairlead explain request ID"


def _cells(decision: api.DecisionOut, is_wide: bool) -> list[str]:
    outcome = decision.outcome or api.OutcomeOut()
    has_ended = decision.outcome is not None
    slo = {None: UNKNOWN, True: "met", False: "missed"}[outcome.within_objective]
    cells = [
        datetime.fromtimestamp(decision.wall, UTC).strftime("%H:%M:%S"),
        decision.request_id,
        decision.model.rpartition("/")[2],
        str(outcome.status) if has_ended else "running",
        format_seconds(outcome.ttft_seconds),
        format_seconds(outcome.duration_seconds if has_ended else None),
        slo,
    ]
    if not is_wide:
        return cells
    instance = decision.choices[-1].instance if decision.choices else None
    tokens = [outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens]
    return [
        *cells,
        decision.caller or UNKNOWN,
        UNKNOWN if instance is None else short_instance_name(instance),
        *map(format_count, tokens),
    ]


def main_cause(decision: api.DecisionOut) -> str:
    """Returns why a request failed, or the longest part of its wait with its share."""
    outcome = decision.outcome
    if outcome is None:
        return UNKNOWN
    if outcome.client_gone:
        return "the client left"
    if outcome.error is not None:
        whys = sorted({failure.why for failure in outcome.failures})
        return f"{outcome.error}: {', '.join(whys)}" if whys else outcome.error
    parts = wait_parts(decision)
    return f"{100 * parts[0].share:.0f} % {parts[0].text}" if parts else UNKNOWN
