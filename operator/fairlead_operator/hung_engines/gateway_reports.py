"""Gateway reports: which instances each gateway has ejected, from its management port.

All ready gateways of the installation are read. One that does not answer is missing: it votes
neither for nor against an engine.
"""

import asyncio
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from fairlead.errors import FairleadError, Unavailable
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.resources import PODS, Manifest, is_deleting, is_ready, label_selector, name_of
from fairlead.limits import Limits
from fairlead.runtime.http_client import fetch
from fairlead_operator.render.context import AllowedPeer

HUNG_READ_SECONDS: Final = 5.0
"""Limit: a gateway whose report takes longer is missing, and does not vote."""
HUNG_FLEET_BYTES: Final = 16 * 1024 * 1024
"""Limit: a gateway's report; one with 4,096 engines has about 6 MB."""
HUNG_GATEWAYS: Final = 256
"""Limit: gateways that are read; the first ones by name."""
HUNG_CONCURRENT_READS: Final = 4
"""Limit: reports that are read at the same time, which bounds their memory."""

_Answer = TypeVar("_Answer")
MANAGE_PORT_NAME: Final = "manage"
_DEFAULT_MANAGE_PORT: Final = 8_081

_MAX_INSTANCES: Final = 2 * Limits().instances
"""Instances of a report: twice those of a fleet, since gateways and operator see changes at
different times."""
_MAX_OBJECTS: Final = 32 * _MAX_INSTANCES
"""JSON objects of a report. A report of the largest size can have five million, which take seconds
to decode."""


class InstanceReport(msgspec.Struct, frozen=True):
    """One gateway's report on one instance.

    ejection: None: not ejected. Unset: the gateway is of a release that does not report it.
    answer_age_seconds: since the last answer of the instance; None: there was none.
    """

    id: str
    ejection: EjectionReport | msgspec.UnsetType | None = msgspec.UNSET
    answer_age_seconds: float | None = None


class _Model(msgspec.Struct):
    instances: list[InstanceReport] = []


class _Fleet(msgspec.Struct):
    models: list[_Model] = []


_FLEET_DECODER: Final = msgspec.json.Decoder(_Fleet)


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """The answer of one gateway.

    error: why there is no answer; empty if there is one.
    """

    name: str
    instances: tuple[InstanceReport, ...] = ()
    error: str = ""


def parse_fleet(body: bytes) -> tuple[InstanceReport, ...]:
    """Returns the instances of a gateway's `/api/fleet`. Raises Unavailable if it is none."""
    fleet = decode_report(body, _FLEET_DECODER)
    instances = tuple(instance for model in fleet.models for instance in model.instances)
    check_instance_count(len(instances))
    return instances


def decode_report(body: bytes, decoder: msgspec.json.Decoder[_Answer]) -> _Answer:
    """Returns the answer of a gateway. Raises Unavailable if it is another, or too large."""
    if body.count(b"{") > _MAX_OBJECTS:
        raise Unavailable(f"its answer has more than {_MAX_OBJECTS} objects")
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"its answer cannot be read: {error}") from error


def check_instance_count(count: int) -> None:
    """Raises Unavailable if an answer has more instances than a fleet can have."""
    if count > _MAX_INSTANCES:
        raise Unavailable(f"its answer has more than {_MAX_INSTANCES} instances")


def management_url(pod: Manifest) -> str | None:
    """Returns the URL of a gateway pod's management port; None unless the pod is ready."""
    address = str((pod.get("status") or {}).get("podIP") or "")
    if not address or not is_ready(pod) or is_deleting(pod):
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{_management_port(pod)}"


def _management_port(pod: Manifest) -> int:
    for container in (pod.get("spec") or {}).get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == MANAGE_PORT_NAME:
                return int(port["containerPort"])
    return _DEFAULT_MANAGE_PORT


class GatewayReader:
    """The reader of all gateways of the installation.

    gateways: namespace and labels of their pods.
    token: of the management port; None sends none.
    """

    def __init__(
        self,
        api: KubeClient,
        gateways: AllowedPeer,
        token: str | None,
        max_bytes: int = HUNG_FLEET_BYTES,
        max_gateways: int = HUNG_GATEWAYS,
        max_reads: int = HUNG_CONCURRENT_READS,
    ) -> None:
        self._api = api
        self._gateways = gateways
        self._headers = {"accept": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._max_bytes = max_bytes
        self._max_gateways = max_gateways
        self._free_reads = asyncio.Semaphore(max_reads)

    async def read(self) -> list[GatewayReport]:
        """Returns the report of every ready gateway, by name. Raises KubeError if the pods cannot
        be listed.
        """
        return [_report(name, body) for name, body in (await self.fetch_all("/api/fleet")).items()]

    async def fetch_all(self, path: str) -> dict[str, bytes | FairleadError]:
        """Returns the answer of every ready gateway, by name, or why there is none. Raises
        KubeError if the pods cannot be listed.
        """
        listed = await self._api.list(PODS, self._gateways.namespace, label_selector(self._gateways.labels))
        urls = {name_of(pod): url for pod in listed.items if (url := management_url(pod)) is not None}
        chosen = sorted(urls.items())[: self._max_gateways]
        bodies = await asyncio.gather(*(self._fetch(f"{url}{path}") for _, url in chosen))
        return {name: body for (name, _), body in zip(chosen, bodies, strict=True)}

    async def _fetch(self, url: str) -> bytes | FairleadError:
        try:
            async with self._free_reads:
                return await fetch(
                    url,
                    timeout_seconds=HUNG_READ_SECONDS,
                    max_bytes=self._max_bytes,
                    headers=self._headers,
                )
        except FairleadError as error:
            return error


def _report(name: str, body: bytes | FairleadError) -> GatewayReport:
    try:
        if isinstance(body, FairleadError):
            raise body
        return GatewayReport(name, parse_fleet(body))
    except FairleadError as error:
        return GatewayReport(name, error=error.message)
