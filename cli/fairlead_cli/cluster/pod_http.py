"""What our pods say of themselves on their management ports, asked through the API server's proxy.

The API server connects to the pod from where it runs; our credentials stay with it, so only pages that need no token are asked for:
readiness and metrics. A NetworkPolicy may keep the API server out, and then the reason is told instead.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi, RawResponse
from fairlead.kube.resources import PODS, Manifest, metadata_of, name_of
from fairlead_cli.cluster.metrics_page import MetricsPage, parse_metrics
from fairlead_cli.cluster.missing_value import MissingValue

TIMEOUT_SECONDS: Final = 8.0
MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
GATEWAY_PORT, HTTP_PORT = 8081, 8080
_NETWORK_POLICY_HINT: Final = "; a NetworkPolicy may keep the API server out"
_PRIVATE_HOST: Final = "gateway.localhost"
"""A Host that a management port takes, where the API server's own name is one that it refuses."""


class Readiness(msgspec.Struct, frozen=True):
    """``/readyz`` of a gateway."""

    ready: bool
    notes: list[str]


@dataclass(frozen=True, slots=True)
class PodReport:
    """What one pod said. Each may be missing by itself."""

    pod: str
    namespace: str
    readiness: Readiness | MissingValue
    metrics: MetricsPage | MissingValue


def pod_port(pod: Manifest, name: str, default: int) -> int:
    """The number of a named container port."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == name:
                return int(port.get("containerPort") or default)
    return default


async def query_gateway(api: KubeApi, pod: Manifest) -> PodReport:
    """Readiness and metrics of a gateway's pod."""
    port = pod_port(pod, "manage", GATEWAY_PORT)
    readiness: Readiness | MissingValue
    answer = await get_page(api, pod, port, "/readyz")
    if isinstance(answer, MissingValue):
        readiness = answer
    else:
        try:
            readiness = msgspec.json.decode(answer.body, type=Readiness)
        except msgspec.DecodeError:
            readiness = MissingValue(f"/readyz answers {answer.status} with something else than readiness")
    return PodReport(name_of(pod), _space(pod), readiness, await _metrics(api, pod, port, answer))


async def query_component(api: KubeApi, pod: Manifest) -> PodReport:
    """The same of an operator's or an indexer's pod, whose readiness is text."""
    port = pod_port(pod, "http", HTTP_PORT)
    answer = await get_page(api, pod, port, "/readyz")
    readiness: Readiness | MissingValue
    if isinstance(answer, MissingValue):
        readiness = answer
    else:
        readiness = Readiness(answer.status == 200, [answer.body.decode("utf-8", "replace").strip()])
    return PodReport(name_of(pod), _space(pod), readiness, await _metrics(api, pod, port, answer))


async def _metrics(
    api: KubeApi, pod: Manifest, port: int, before: RawResponse | MissingValue
) -> MetricsPage | MissingValue:
    if isinstance(before, MissingValue):  # nobody waits a second time for a pod that is not reached
        return before
    answer = await get_page(api, pod, port, "/metrics")
    if isinstance(answer, MissingValue):
        return answer
    if answer.status != 200 or answer.truncated:
        return MissingValue("/metrics is too long" if answer.truncated else f"/metrics answers {answer.status}")
    return parse_metrics(answer.body.decode("utf-8", "replace"))


async def get_page(api: KubeApi, pod: Manifest, port: int, path: str) -> RawResponse | MissingValue:
    """A pod's own answer to GET, whatever its status; Missing where the API server did not get through."""
    if not (pod.get("status") or {}).get("podIP"):
        return MissingValue(f"pod {name_of(pod)} has no address yet")
    where = f"{PODS.path(_space(pod), name_of(pod))}:{port}/proxy{path}"
    try:
        answer = await api.get_raw(where, MAX_PAGE_BYTES, TIMEOUT_SECONDS)
        if (
            answer.status == 403 and _api_server_error(answer) is None
        ):  # the pod's guard against foreign host names, not the API server
            answer = await api.get_raw(where, MAX_PAGE_BYTES, TIMEOUT_SECONDS, host=_PRIVATE_HOST)
    except FairleadError as error:
        if isinstance(error.__cause__, TimeoutError):
            return MissingValue(f"pod {name_of(pod)} says nothing for {TIMEOUT_SECONDS:.0f} s{_NETWORK_POLICY_HINT}")
        return MissingValue(f"the API server does not answer: {error.message}")
    refused = _api_server_error(answer)
    if refused is None:
        return answer
    said = " ".join(str(refused.get("message", "")).split())
    if answer.status == 403:
        return MissingValue(f"you may not get pods/proxy in {_space(pod)}", is_forbidden=True)
    hint = _NETWORK_POLICY_HINT if "timeout" in said or "deadline" in said else ""
    return MissingValue(f"the API server does not reach pod {name_of(pod)}: {said or answer.status}{hint}")


def _api_server_error(answer: RawResponse) -> dict[str, Any] | None:
    """The API server's own words; None when the pod spoke."""
    if answer.status < 400:
        return None
    try:
        found = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        # It words a refused connection in plain text.
        text = answer.body[:400].decode("utf-8", "replace").strip()
        return {"message": text} if text.startswith(("error trying to reach service", "address not allowed")) else None
    return found if isinstance(found, dict) and found.get("kind") == "Status" else None


def _space(pod: Manifest) -> str:
    return str(metadata_of(pod).get("namespace") or "default")
