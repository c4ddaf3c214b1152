"""``fairlead explain``: why a request went where it went, where one would go, and why a model has as many engines as it has."""

from typing import Annotated

from cyclopts import Parameter


def explain(
    what: Annotated[
        str | None,
        Parameter(
            help="A request's id, from the header x-fairlead-decision; without: the last request. The word route: where a "
            "prompt would go just now. The word scale: why a model has as many replicas as it has."
        ),
    ] = None,
    of: Annotated[str | None, Parameter(help="Of scale: the model; without, the only one that is scaled.")] = None,
    /,
    *,
    model: Annotated[
        str | None, Parameter(name=["--model", "-m"], help="Of route: the model, as a client names it.")
    ] = None,
    file: Annotated[
        str | None,
        Parameter(
            name=["--file", "-f"],
            allow_leading_hyphen=True,
            help="Of route: a file with the prompt, or with a whole request in JSON; - is standard input.",
        ),
    ] = None,
    session: Annotated[str | None, Parameter(help="Of route: the conversation, as in the header x-session-id.")] = None,
    at: Annotated[
        str | None,
        Parameter(
            help="Of scale: as it was then: 5m (ago), 14:05, an ISO date and time, or Unix seconds. Default: now."
        ),
    ] = None,
    manage: Annotated[
        str | None,
        Parameter(
            help="The gateway's management address, of scale the autoscaler's. Default: those of the running `fairlead up`."
        ),
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print the management API's own answer.")] = False,
) -> int:
    """Say why a request went where it went, and what came of it; or where one would go.

    Of a request: every attempt with all candidates, the numbers they were compared by and how old those were, the rule, and why the
    others were not taken; the hand-off from prefill to decode; then the outcome. `explain route -m MODEL -f prompt.txt` asks a
    gateway where that prompt would go just now, and why; nothing is sent or remembered. `explain scale MODEL` asks the
    autoscaler: what it saw, capacity, margin, forecast and need line by line, what it decided by which rule, and whether that was
    written.

    Exits 0 when told, 1 when the request is not (or no longer) in the log or would be refused, 2 on wrong usage, 3 when no gateway
    can be reached.
    """
    from fairlead_cli.explain.command import RouteQuery, print_usage, run_request, run_route

    if what == "scale" and model is None and file is None and session is None:
        from fairlead_cli.scaling.explain_command import run as run_scale

        return run_scale(of, at, manage, json)
    if of is not None or at is not None:
        return print_usage()
    if what == "route" and file is not None:
        return run_route(RouteQuery(model, file, session), manage, json)
    if what == "route" or model is not None or file is not None or session is not None:
        return print_usage()
    return run_request(what, manage, json)
