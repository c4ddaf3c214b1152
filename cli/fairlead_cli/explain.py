"""``fairlead explain``: one request, attempt by attempt, from the gateway's decision log."""

from typing import Annotated

from cyclopts import Parameter


def explain(
    request: Annotated[
        str | None, Parameter(help="Its id, from the header x-fairlead-decision. Without: the last request.")
    ] = None,
    /,
    *,
    manage: Annotated[
        str | None, Parameter(help="The gateway's management address. Default: that of the running `fairlead up`.")
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print the management API's own answer.")] = False,
) -> int:
    """Say why a request went where it went, and what came of it.

    Every attempt with all candidates, the numbers they were compared by and how old those were, the rule, and why the others
    were not taken; the hand-off from prefill to decode; then the outcome. Exits 0 when told, 1 when the request is not (or no
    longer) in the log, 2 on wrong usage, 3 when no gateway can be reached.
    """
    from fairlead_cli.local.explaining import run

    return run(request, manage, json)
