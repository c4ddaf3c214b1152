"""A client of the gateway's management API: live view, ``local status``, ``/why``, draining."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from cyclopts import Parameter

from fairlead import management_api as api
from fairlead.audit.record import AuditRecord
from fairlead.errors import BadInput
from fairlead.kube.resources import name_of
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import service_url
from fairlead_cli.exit_codes import StackUnreachable
from fairlead_cli.local.run_directory import newest_stack
from fairlead_cli.target import ClusterOptions, InstallationOptions, is_cluster_target

if TYPE_CHECKING:
    from fairlead_cli.cluster.installation import Installation

TIMEOUT_SECONDS = 5.0
_AnswerT = TypeVar("_AnswerT")

_HINT = "is the stack running, and is this its management address (`fairlead up` prints it)?"

ManageFlag = Annotated[
    str | None,
    Parameter(help="A gateway's management address. Default: that of the running `fairlead up`, else of the cluster."),
]


@dataclass(frozen=True, slots=True)
class GatewaySnapshot:
    """Fleet, statistics and last decisions, read at about the same time."""

    fleet: api.FleetOut
    stats: api.StatsOut
    decisions: api.DecisionsOut


class ManagementClient:
    """Client of one gateway's management API.

    Methods raise StackUnreachable when the answer is not as expected, unless they say otherwise.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        # No proxies, no TLS context: this is the loopback interface or a port forward.
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            verify=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.aclose()

    async def fleet(self) -> api.FleetOut:
        return await self._get("/api/fleet", api.FleetOut)

    async def stats(self) -> api.StatsOut:
        return await self._get("/api/stats", api.StatsOut)

    async def tenants(self) -> api.TenantsOut:
        return await self._get("/api/tenants", api.TenantsOut)

    async def audit(self, since: float, tenant: str | None, limit: int) -> list[AuditRecord]:
        """Returns the last audit records of the gateway."""
        filter_ = {"tenant": tenant} if tenant else {}
        query = {"since": str(since), "limit": str(limit), **filter_}
        return (await self._get("/api/audit", api.AuditOut, query)).records

    async def usage(self, first_day: str, last_day: str) -> api.UsageOut:
        """Returns what the gateway's ledger holds about these days, not grouped."""
        days = {"from": first_day, "to": last_day}
        answer = await self._send("/api/usage", {**days, "by": "", "replicas": "true"})
        if answer.status_code == 404 and b'"error"' in answer.content:
            raise StackUnreachable(f"{self.url}: {_error_message(answer.content)}", hint="or read a folder with --dir")
        return self._read(answer, api.UsageOut)

    async def budgets(self, tenant: str) -> list[api.BudgetOut]:
        return (await self._get("/api/budgets", api.BudgetsOut, {"tenant": tenant})).budgets

    async def decisions(
        self, limit: int, model: str | None = None, kind: str | None = None, tenant: str | None = None
    ) -> api.DecisionsOut:
        """Returns the last decisions, newest first.

        kind: `failed`, or `slow` for the slowest first.
        """
        wanted = {"model": model, "kind": kind, "tenant": tenant}
        filter_ = {name: value for name, value in wanted.items() if value is not None}
        return await self._get("/api/decisions", api.DecisionsOut, {"limit": str(limit), **filter_})

    async def decision(self, request_id: str) -> api.DecisionOut:
        """Returns the choices and the outcome of one request.

        Raises LookupError when the gateway no longer has them.
        """
        return msgspec.json.decode(await self.decision_json(request_id), type=api.DecisionOut)

    async def decision_json(self, request_id: str) -> bytes:
        """Returns the decision as raw JSON, validated. Raises LookupError when the gateway no
        longer has it.
        """
        answer = await self._send(f"/api/decisions/{quote(request_id, safe='')}")
        if answer.status_code == 404 and b'"error"' in answer.content:
            raise LookupError(request_id)
        if answer.status_code == 409:
            hint = "take the id from the answer's header x-fairlead-decision: no client chose that one"
            raise BadInput(_error_message(answer.content), field="ID", hint=hint)
        self._read(answer, api.DecisionOut)
        return answer.content

    async def preview_route(
        self, path: str, body: bytes, session: str | None, tenant: str | None = None, headers: Sequence[str] = ()
    ) -> bytes:
        """Returns where a request would go, as raw JSON, validated.

        headers: that a client would send, each as `NAME:VALUE`.
        Raises LookupError with the gateway's message when it would reject the request.
        """
        sent = {"content-type": "application/json"} | ({} if session is None else {"x-session-id": session})
        query: dict[str, str | Sequence[str]] = {"path": path}
        if tenant is not None:
            query["tenant"] = tenant
        if headers:
            query["header"] = headers
        answer = await self._send("/api/route", query, body, sent)
        if answer.status_code != 200 and b'"error"' in answer.content and answer.status_code not in (401, 403):
            raise LookupError(
                f"the gateway would reject this request ({answer.status_code}): {_error_message(answer.content)}"
            )
        self._read(answer, api.RoutePreviewOut)
        return answer.content

    async def snapshot(self, decisions: int, model: str | None = None) -> GatewaySnapshot:
        return GatewaySnapshot(await self.fleet(), await self.stats(), await self.decisions(decisions, model))

    async def has_stopped_routing(self, instance_id: str) -> bool:
        """Whether the gateway routes no new request to this instance, or does not know it.

        False when the gateway does not answer.
        """
        try:
            instance = _find_instance(await self.fleet(), instance_id)
        except StackUnreachable:
            return False
        return instance is None or instance.state not in ("Ready", "Starting")

    async def in_flight_requests(self, instance_id: str) -> int:
        """Returns the number of requests in flight on this instance.

        The number is 0 when the gateway does not know the instance or does not answer.
        """
        try:
            instance = _find_instance(await self.fleet(), instance_id)
        except StackUnreachable:
            return 0
        return (instance.in_flight or 0) if instance else 0

    async def _get(self, path: str, kind: type[_AnswerT], parameters: dict[str, str] | None = None) -> _AnswerT:
        return self._read(await self._send(path, parameters), kind)

    async def _send(
        self,
        path: str,
        parameters: Mapping[str, str | Sequence[str]] | None = None,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Sends one request: a POST with ``body``, else a GET."""
        method = "GET" if body is None else "POST"
        try:
            return await self._client.request(method, path, params=parameters, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise StackUnreachable(f"{self.url} does not answer ({type(error).__name__})", hint=_HINT) from error

    def _read(self, answer: httpx.Response, kind: type[_AnswerT]) -> _AnswerT:
        if answer.status_code == 403 and b'"error"' in answer.content:
            hint = "set FAIRLEAD_MANAGE_TOKEN to a management token that may do this"
            raise StackUnreachable(f"{self.url} refuses access: {_error_message(answer.content)}", hint=hint)
        if answer.status_code in (401, 403):
            raise StackUnreachable(
                f"{self.url} refuses access ({answer.status_code})",
                hint="set FAIRLEAD_MANAGE_TOKEN to the gateway's management token",
            )
        try:
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            return msgspec.json.decode(answer.content, type=kind)
        except ValueError as error:  # msgspec's own errors are ValueErrors too
            where = f"{self.url}{answer.url.path}"
            raise StackUnreachable(f"{where} is not Fairlead's management API: {error}", hint=_HINT) from error


def _error_message(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=_ErrorAnswer).error.message
    except ValueError:
        return content[:200].decode("utf-8", "replace")


class _ErrorBody(msgspec.Struct):
    message: str


class _ErrorAnswer(msgspec.Struct):
    error: _ErrorBody


def _find_instance(fleet: api.FleetOut, instance_id: str) -> api.InstanceOut | None:
    return next(
        (instance for model in fleet.models for instance in model.instances if instance.id == instance_id), None
    )


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
class ManagementEndpoint:
    """A management API. ``name`` is for people; ``url`` returns the address, and forwards a port
    for it if needed.

    installation: whose gateway it is, in a cluster.
    """

    name: str
    url: Callable[[], str]
    token: str | None
    installation: "Installation | None" = None

    def query(self, query: "Callable[[ManagementClient], Awaitable[_AnswerT]]") -> _AnswerT:
        """Returns the answer to a query, over a connection of its own. No event loop may run."""
        url = self.url()

        async def run() -> _AnswerT:
            async with ManagementClient(url, self.token) as client:
                return await query(client)

        return asyncio.run(run())

    def qualify_model(self, name: str) -> str:
        return name if self.installation is None else self.installation.qualify_model(name)


@contextmanager
def open_endpoints(manage: str | None, cluster: ClusterOptions) -> Iterator[Sequence[ManagementEndpoint]]:
    """Yields the endpoint of ``manage`` or of the stack on this machine, or those of a cluster.

    Raises StackUnreachable, ClusterUnreachable, or BadInput that names a missing permission.
    """
    token = read_settings(CliSettings, os.environ).manage_token
    if not is_cluster_target(cluster, manage):
        url = service_url(manage, flag="--manage") if manage else newest_stack("--manage").manage
        yield [ManagementEndpoint(url, lambda: url, token)]
        return
    from fairlead_cli.cluster.installation import open_installation

    with open_installation(cluster) as installation:
        yield gateway_endpoints(installation, token)


def gateway_endpoints(installation: "Installation", token: str | None) -> Sequence[ManagementEndpoint]:
    """Returns the management APIs of all gateways of a cluster.

    token: used instead of that of the installation.

    Raises ClusterUnreachable when no gateway is ready, BadInput that names a missing permission.
    """
    token = token or installation.manage_token()
    return [
        ManagementEndpoint(f"gateway {name_of(pod)}", partial(installation.manage_url, pod), token, installation)
        for pod in installation.gateway_pods()
    ]
