"""A client of the autoscaler's HTTP API: at an address, of `fairlead up`, or of a cluster."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Final

import httpx
import msgspec
from cyclopts import Parameter

from fairlead.settings import CliSettings, read_settings
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_cli.addresses import service_url
from fairlead_cli.exit_codes import StackUnreachable
from fairlead_cli.local.run_directory import newest_stack
from fairlead_cli.target import ClusterOptions, is_cluster_target

TIMEOUT_SECONDS: Final = 30.0
_NO_AUTOSCALER_HINT: Final = (
    "a stack has one where a manifest says `autoscaling: {mode: Auto}`; name another's address with --autoscaler"
)
_ADDRESS_HINT: Final = (
    "--autoscaler is the address of an autoscaler's own port: `fairlead up` prints that of its own, "
    "and `fairlead local status` shows whether it runs"
)

_CLUSTER = ClusterOptions()


@dataclass(frozen=True, slots=True)
class PoolScaling:
    """A pool that the autoscaler scales: the wanted engines, the bounds and the reason.

    asleep: sleeping engines besides the wanted ones.

    unwritten: why the decision is not applied; None when it is.
    """

    pool: str
    wanted: int
    least: int
    most: int
    rule: str
    reason: str
    unwritten: str | None = None
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class AutoscalerSource:
    """Flags that select the autoscaler to query: by its address, or by its cluster."""

    autoscaler: Annotated[
        str | None,
        Parameter(help="An autoscaler's address. Default: that of the running `fairlead up`, else of the cluster."),
    ] = None
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _CLUSTER


@dataclass(frozen=True, slots=True)
class AutoscalerEndpoint:
    """The HTTP API of an autoscaler.

    source: what is queried, for people.
    """

    url: str
    token: str | None
    source: str = ""


@contextmanager
def open_autoscaler(address: str | None, cluster: ClusterOptions) -> Iterator[AutoscalerEndpoint]:
    """Yields the autoscaler at an address, that of the stack on this machine, or a cluster's
    leader.

    Raises StackUnreachable when the stack has no autoscaler, ClusterUnreachable when the cluster
    has none, BadInput that names a missing permission.
    """
    token = read_settings(CliSettings, os.environ).manage_token
    if not is_cluster_target(cluster, address, "--autoscaler"):
        yield _local_endpoint(address, token)
        return
    from fairlead_cli.cluster.installation import open_installation

    with open_installation(cluster) as installation:
        token = token or installation.manage_token()
        pods = installation.autoscaler_pods()
        yield _leader(
            [
                AutoscalerEndpoint(installation.autoscaler_url(pod), token, f"pod {pod['metadata']['name']}")
                for pod in pods
            ]
        )


def _local_endpoint(address: str | None, token: str | None) -> AutoscalerEndpoint:
    if address is not None:
        url = service_url(address, flag="--autoscaler")
        return AutoscalerEndpoint(url, token, url)
    stack = newest_stack("--autoscaler")
    name = f"the stack of process {stack.pid} on this machine, {stack.url}"
    if not stack.autoscaler:
        raise StackUnreachable(f"{name}, has no autoscaler", hint=_NO_AUTOSCALER_HINT)
    return AutoscalerEndpoint(stack.autoscaler, token, name)


def _leader(endpoints: Sequence[AutoscalerEndpoint]) -> AutoscalerEndpoint:
    """Returns the endpoint of the leader, else the last endpoint.

    Why: all autoscalers decide, and only the leader writes.
    """
    for endpoint in endpoints[:-1]:
        if msgspec.json.decode(query(endpoint, "/autoscaling", {})).get("leads"):
            return endpoint
    return endpoints[-1]


def query(endpoint: AutoscalerEndpoint, path: str, query: Mapping[str, str]) -> bytes:
    """Returns the body of one answer.

    Raises StackUnreachable when no autoscaler answers, LookupError with the autoscaler's message
    when it knows nothing.
    """
    url = endpoint.url
    headers = {"authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    try:
        with httpx.Client(
            base_url=url,
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            verify=url.startswith("https:"),  # loading certificates takes 40 ms
        ) as client:
            answer = client.get(path, params=query)
    except httpx.HTTPError as error:
        raise StackUnreachable(f"{url} does not answer ({type(error).__name__})", hint=_ADDRESS_HINT) from error
    if answer.status_code in (401, 403):
        hint = "set FAIRLEAD_MANAGE_TOKEN to the autoscaler's management token"
        raise StackUnreachable(f"{url} refuses access ({answer.status_code})", hint=hint)
    if answer.status_code == 404 and b'"error"' in answer.content:
        raise LookupError(answer.json()["error"]["message"])
    if answer.status_code != 200:
        raise StackUnreachable(f"{url} is not an autoscaler (status {answer.status_code})", hint=_ADDRESS_HINT)
    return answer.content


def read_pool_scaling(url: str) -> dict[str, tuple[PoolScaling, ...]]:
    """Returns the wanted scale of each pool, by model, from the autoscaler of a stack.

    Raises like ``query``, and ValueError for an invalid answer.
    """
    endpoint = AutoscalerEndpoint(url, read_settings(CliSettings, os.environ).manage_token)
    answer = msgspec.json.decode(query(endpoint, "/autoscaling", {}), type=_Said)
    return {key: tuple(_sized(look)) for key, look in answer.models.items()}


class _Said(msgspec.Struct):
    models: dict[str, TickRecord]


def _sized(look: TickRecord) -> Iterator[PoolScaling]:
    pools = {pool.name: pool for pool in look.model.pools}
    for name, ruling in look.rulings.items():
        pool = pools.get(name)
        if pool is not None:
            minimum, maximum = ruling.bounds or (pool.minimum, pool.maximum)
            yield PoolScaling(
                name,
                ruling.replicas,
                minimum,
                maximum,
                ruling.rule,
                ruling.reason,
                ruling.unwritten
                if (ruling.replicas, ruling.asleep) != (ruling.desired, ruling.asleep_desired)
                else None,
                ruling.asleep,
            )
