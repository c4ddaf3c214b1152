"""What our pods say of themselves on their management ports, asked through the API server's proxy.

The API server connects to the pod from where it runs; our credentials stay with it, so only pages that need no token are asked for:
readiness and metrics. A NetworkPolicy may keep the API server out, and then the reason is told instead.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fairlead.errors import FairleadError
from fairlead.kube.client import Answered, KubeApi
from fairlead.kube.resource import PODS, Manifest, metadata_of, name_of
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.prometheus import Page, parse

SECONDS: Final = 8.0
PAGE_BYTES: Final = 8 * 1024 * 1024
GATEWAY_PORT, PLAIN_PORT = 8081, 8080
_POLICY: Final = "; a NetworkPolicy may keep the API server out"
_PRIVATE_HOST: Final = "gateway.localhost"
"""A Host that a management port takes, where the API server's own name is one that it refuses."""


class Readiness(msgspec.Struct, frozen=True):
    """``/readyz`` of a gateway."""

    ready: bool
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Told:
    """What one pod said. Each may be missing by itself."""

    pod: str
    namespace: str
    readiness: Readiness | Missing
    metrics: Page | Missing


def pod_port(pod: Manifest, name: str, default: int) -> int:
    """The number of a named container port."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == name:
                return int(port.get("containerPort") or default)
    return default


async def gateway(api: KubeApi, pod: Manifest) -> Told:
    """Readiness and metrics of a gateway's pod."""
    port = pod_port(pod, "manage", GATEWAY_PORT)
    readiness: Readiness | Missing
    answer = await page(api, pod, port, "/readyz")
    if isinstance(answer, Missing):
        readiness = answer
    else:
        try:
            readiness = msgspec.json.decode(answer.body, type=Readiness)
        except msgspec.DecodeError:
            readiness = Missing(f"/readyz answers {answer.status} with something else than readiness")
    return Told(name_of(pod), _space(pod), readiness, await _metrics(api, pod, port, answer))


async def plain(api: KubeApi, pod: Manifest) -> Told:
    """The same of an operator's or an indexer's pod, whose readiness is text."""
    port = pod_port(pod, "http", PLAIN_PORT)
    answer = await page(api, pod, port, "/readyz")
    readiness: Readiness | Missing
    if isinstance(answer, Missing):
        readiness = answer
    else:
        readiness = Readiness(answer.status == 200, [answer.body.decode("utf-8", "replace").strip()])
    return Told(name_of(pod), _space(pod), readiness, await _metrics(api, pod, port, answer))


async def _metrics(api: KubeApi, pod: Manifest, port: int, before: Answered | Missing) -> Page | Missing:
    if isinstance(before, Missing):  # nobody waits a second time for a pod that is not reached
        return before
    answer = await page(api, pod, port, "/metrics")
    if isinstance(answer, Missing):
        return answer
    if answer.status != 200 or answer.cut:
        return Missing("/metrics is too long" if answer.cut else f"/metrics answers {answer.status}")
    return parse(answer.body.decode("utf-8", "replace"))


async def page(api: KubeApi, pod: Manifest, port: int, path: str) -> Answered | Missing:
    """A pod's own answer to GET, whatever its status; Missing where the API server did not get through."""
    if not (pod.get("status") or {}).get("podIP"):
        return Missing(f"pod {name_of(pod)} has no address yet")
    where = f"{PODS.path(_space(pod), name_of(pod))}:{port}/proxy{path}"
    try:
        answer = await api.raw(where, PAGE_BYTES, SECONDS)
        if (
            answer.status == 403 and _refusal(answer) is None
        ):  # the pod's guard against foreign host names, not the API server
            answer = await api.raw(where, PAGE_BYTES, SECONDS, host=_PRIVATE_HOST)
    except FairleadError as error:
        if isinstance(error.__cause__, TimeoutError):
            return Missing(f"pod {name_of(pod)} says nothing for {SECONDS:.0f} s{_POLICY}")
        return Missing(f"the API server does not answer: {error.message}")
    refused = _refusal(answer)
    if refused is None:
        return answer
    said = " ".join(str(refused.get("message", "")).split())
    if answer.status == 403:
        return Missing(f"you may not get pods/proxy in {_space(pod)}", forbidden=True)
    hint = _POLICY if "timeout" in said or "deadline" in said else ""
    return Missing(f"the API server does not reach pod {name_of(pod)}: {said or answer.status}{hint}")


def _refusal(answer: Answered) -> dict[str, Any] | None:
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
