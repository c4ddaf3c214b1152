"""``fairlead explain``: routing of a request or a prompt, and scaling of a model."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.output import OutputFlag
from fairlead_cli.target import ClusterOptions, InstallationOptions, ModelFlag, qualified_name

ManageFlag = Annotated[
    str | None,
    Parameter(help="A gateway's management address. Default: that of the running `fairlead up`, else of the cluster."),
]
_CLUSTER, _INSTALLATION = ClusterOptions(), InstallationOptions()


@dataclass(frozen=True, slots=True)
class GatewaySource:
    """Flags that select the gateway to query: by its address, or by its cluster."""

    manage: ManageFlag = None
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _CLUSTER


@dataclass(frozen=True, slots=True)
class GatewaysSource:
    """Flags that select the gateways to query: by an address, or by their installation."""

    manage: ManageFlag = None
    installation: Annotated[InstallationOptions, Parameter(name="*")] = _INSTALLATION


@dataclass(frozen=True, slots=True)
class AutoscalerSource:
    """Flags that select the autoscaler to query: by its address, or by its cluster."""

    autoscaler: Annotated[
        str | None,
        Parameter(help="An autoscaler's address. Default: that of the running `fairlead up`, else of the cluster."),
    ] = None
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _CLUSTER


@dataclass(frozen=True, slots=True)
class SenderFlags:
    """Flags that say who would send a request, and with which headers."""

    session: Annotated[str | None, Parameter(help="The conversation, as in the header x-session-id.")] = None
    tenant: Annotated[
        str | None,
        Parameter(help="The tenant that would send it: with its models and its cached prompts. Default: no tenant."),
    ] = None
    header: Annotated[
        tuple[str, ...],
        Parameter(help='A further header, like "x-canary: yes", by which a route may choose. Repeatable.', negative=()),
    ] = ()


_GATEWAY, _GATEWAYS, _AUTOSCALER, _SENDER = GatewaySource(), GatewaysSource(), AutoscalerSource(), SenderFlags()


def explain_request(
    request_id: Annotated[
        str | None,
        Parameter(
            name="ID",
            help="Its id: from the header x-fairlead-decision, the answer's own id, or the x-request-id that the "
            "client sent. Default: the last request.",
        ),
    ] = None,
    /,
    *,
    source: Annotated[GatewaysSource, Parameter(name="*")] = _GATEWAYS,
    output: OutputFlag = "table",
) -> int:
    """Explain why a request went to its instance.

    Shows every attempt with all candidates, their inputs and ages, the rule, and why other
    candidates were not chosen. Also shows the KV transfer from prefill to decode, and the outcome.
    In a cluster, all gateways are asked. Tokens of prompts are estimates from bytes. JSON and YAML
    are the management API's own answer.

    Exits 0 with an answer, 1 when the request is not in the log, 2 on wrong usage, 3 when no
    gateway can be reached.
    """
    from fairlead_cli.explain.command import run_request

    return run_request(request_id, source.manage, source.installation.cluster, output)


def explain_route(
    model: ModelFlag = None,
    *,
    file: Annotated[
        str,
        Parameter(
            name=["--file", "-f"],
            allow_leading_hyphen=True,
            help="A file with the prompt, or with a whole request in JSON; - is standard input.",
        ),
    ],
    sender: Annotated[SenderFlags, Parameter(name="*")] = _SENDER,
    source: Annotated[GatewaySource, Parameter(name="*")] = _GATEWAY,
    output: OutputFlag = "table",
) -> int:
    """Explain where a prompt would go now, and why. Nothing is sent to an engine or stored.

    Text becomes one user message. A prompt finds only what a request in the same form left: for a
    request with several messages or tools, give its whole JSON body. Tokens are estimates from
    bytes. Of a route, it shows the target that this request would get, and the fallbacks.

    Exits 0 with an answer, 1 when the request would be refused, 2 on wrong usage, 3 when no gateway
    can be reached.
    """
    from fairlead_cli.explain.command import RouteQuery, run_route

    name = qualified_name(model, source.cluster.namespace)
    query = RouteQuery(name, file, sender.session, sender.tenant, sender.header)
    return run_route(query, source.manage, source.cluster, output)


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
    from fairlead_cli.scaling.explain_command import ScalingQuery, run

    return run(
        ScalingQuery(qualified_name(model, source.cluster.namespace), at), source.autoscaler, source.cluster, output
    )


def explain_shadow(
    model: ModelFlag = None,
    *,
    source: Annotated[GatewaySource, Parameter(name="*")] = _GATEWAY,
    output: OutputFlag = "table",
) -> int:
    """Explain how a model answers copies of requests for another model.

    The model is the `shadow` of a route. Shows errors, TTFT, TPOT and the length of answers, of the
    same requests on both sides, since each gateway has started. Also shows why other requests were
    not copied. In a cluster, each gateway has a table of its own.

    Exits 0 with an answer, 1 when no request was copied, 2 on wrong usage, 3 when no gateway can be
    reached.
    """
    from fairlead_cli.explain.shadow import run_shadow

    name = qualified_name(model, source.cluster.namespace)
    return run_shadow(name, source.manage, source.cluster, output)
