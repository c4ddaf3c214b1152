"""HTTP queries to the management ports of our pods, through the API server's proxy.

The API server connects to the pod and keeps the user's credentials, so only pages without a token
are readable: readiness and metrics. A NetworkPolicy may keep the API server out; then the reason is
reported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi, RawResponse
from fairlead.kube.resources import PODS, Manifest, metadata_of, name_of
from fairlead_cli.cluster.object_fields import MissingValue

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]++|\\.)*+)"')
_ESCAPED = re.compile(r"\\(.)")

TIMEOUT_SECONDS: Final = 8.0
MAX_PAGE_BYTES: Final = 8 * 1024 * 1024

_NETWORK_POLICY_HINT: Final = "; a NetworkPolicy may keep the API server out"
_PRIVATE_HOST: Final = "gateway.localhost"
"""A host name that management ports accept, for pods that reject the API server's name."""


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One line of the page."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """All samples of a page by name. An absent sample is None: missing is not zero."""

    samples: Mapping[str, Sequence[MetricSample]] = field(default_factory=dict)

    def matching(self, name: str, **labels: str) -> Iterator[MetricSample]:
        """Yields the samples with at least these labels."""
        for sample in self.samples.get(name, ()):
            if labels.items() <= sample.labels.items():
                yield sample

    def value(self, name: str, **labels: str) -> float | None:
        """Returns the first matching value; None without any."""
        return next((sample.value for sample in self.matching(name, **labels)), None)

    def total(self, name: str, **labels: str) -> float | None:
        """Returns the sum of the matching values; None without any."""
        values = [sample.value for sample in self.matching(name, **labels)]
        return sum(values) if values else None


def parse_metrics(text: str) -> MetricsPage:
    """Returns the samples of a page, without histogram buckets, which no check uses."""
    samples: dict[str, list[MetricSample]] = {}
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        match = _LINE.match(line)
        if match is None or match[1].endswith("_bucket"):
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = {name: _ESCAPED.sub(_plain, text) for name, text in _LABEL.findall(match[2] or "")}
        samples.setdefault(match[1], []).append(MetricSample(match[1], labels, value))
    return MetricsPage(samples)


def _plain(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


GATEWAY_PORT, HTTP_PORT = 8081, 8080


class Readiness(msgspec.Struct, frozen=True):
    """Answer of a gateway's ``/readyz``."""

    ready: bool
    notes: list[str]


@dataclass(frozen=True, slots=True)
class PodReport:
    """Readiness and metrics of one pod; each may be missing."""

    pod: str
    namespace: str
    readiness: Readiness | MissingValue
    metrics: MetricsPage | MissingValue


def pod_port(pod: Manifest, name: str, default: int) -> int:
    """Returns the number of a named container port, or ``default`` without such a port."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == name:
                return int(port.get("containerPort") or default)
    return default


async def query_gateway(api: KubeApi, pod: Manifest) -> PodReport:
    """Returns readiness and metrics of a gateway's pod."""
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
    """Returns readiness and metrics of the pod of an operator, an indexer or an autoscaler, whose
    readiness is plain text.
    """
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
    if isinstance(before, MissingValue):  # no second timeout for a pod that is not reached
        return before
    answer = await get_page(api, pod, port, "/metrics")
    if isinstance(answer, MissingValue):
        return answer
    if answer.status != 200 or answer.truncated:
        return MissingValue("/metrics is too long" if answer.truncated else f"/metrics answers {answer.status}")
    return parse_metrics(answer.body.decode("utf-8", "replace"))


async def get_page(api: KubeApi, pod: Manifest, port: int, path: str) -> RawResponse | MissingValue:
    """Returns a pod's answer to GET with any status, or a MissingValue when the API server does not
    reach the pod.
    """
    if not (pod.get("status") or {}).get("podIP"):
        return MissingValue(f"pod {name_of(pod)} has no address yet")
    path_of_pod = f"{PODS.path(_space(pod), name_of(pod))}:{port}/proxy{path}"
    try:
        answer = await api.get_raw(path_of_pod, MAX_PAGE_BYTES, TIMEOUT_SECONDS)
        if (
            answer.status == 403 and _api_server_error(answer) is None
        ):  # the pod's guard against foreign host names, not the API server
            answer = await api.get_raw(path_of_pod, MAX_PAGE_BYTES, TIMEOUT_SECONDS, host=_PRIVATE_HOST)
    except FairleadError as error:
        if isinstance(error.__cause__, TimeoutError):
            return MissingValue(f"pod {name_of(pod)} says nothing for {TIMEOUT_SECONDS:.0f} s{_NETWORK_POLICY_HINT}")
        return MissingValue(f"the API server does not answer: {error.message}")
    error_ = _api_server_error(answer)
    if error_ is None:
        return answer
    message = " ".join(str(error_.get("message", "")).split())
    if answer.status == 403:
        return MissingValue(f"you may not get pods/proxy in {_space(pod)}", is_forbidden=True)
    hint = _NETWORK_POLICY_HINT if "timeout" in message or "deadline" in message else ""
    return MissingValue(f"the API server does not reach pod {name_of(pod)}: {message or answer.status}{hint}")


def _api_server_error(answer: RawResponse) -> dict[str, Any] | None:
    """Returns the API server's own error; None when the pod itself answered."""
    if answer.status < 400:
        return None
    try:
        answer_body = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        # It words a refused connection in plain text.
        text = answer.body[:400].decode("utf-8", "replace").strip()
        return {"message": text} if text.startswith(("error trying to reach service", "address not allowed")) else None
    return answer_body if isinstance(answer_body, dict) and answer_body.get("kind") == "Status" else None


def _space(pod: Manifest) -> str:
    return str(metadata_of(pod).get("namespace") or "default")
