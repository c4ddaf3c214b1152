"""``fairlead explain``: routing of a request or a prompt, and scaling of a model."""

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
    """Say why a request went to its instance, where a prompt would go, or why a model has so many
    replicas.

    Of a request: every attempt with all candidates, their inputs and ages, the rule, and why other
    candidates were not chosen. Then the hand-off from prefill to decode, and the outcome.

    `explain route -m MODEL -f prompt.txt` asks a gateway where that prompt would go now, and why;
    nothing is sent or stored.

    `explain scale MODEL` asks the autoscaler for its observation, the inputs of its decision line
    by line, the rule, and whether the decision was written.

    Exits 0 with an answer, 2 on wrong usage, 3 when no gateway can be reached. Exits 1 when the
    request is not in the log or would be refused.
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
