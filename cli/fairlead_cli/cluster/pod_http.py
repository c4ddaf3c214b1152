"""HTTP queries to the management ports of our pods, which are forwarded to this machine.

Only pages without a token are read: readiness and metrics.

Why forwarded: the API server's own proxy needs a network path to the pod, which a NetworkPolicy
cuts. A forwarded connection ends on the pod's loopback interface.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from fairlead.errors import BadInput, FairleadError
from fairlead.kube.client import KubeApi, RawResponse
from fairlead.kube.resources import Manifest, metadata_of, name_of
from fairlead_cli.cluster.access.port_forward import ForwardedPorts, PodPort
from fairlead_cli.cluster.object_fields import MissingValue

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]++|\\.)*+)"')
_ESCAPED = re.compile(r"\\(.)")

TIMEOUT_SECONDS: Final = 8.0
"""Limit: of a page of a pod, with the connection to it."""
MAX_PAGE_BYTES: Final = 8 * 1024 * 1024


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
    return await _query(api, pod, pod_port(pod, "manage", GATEWAY_PORT), _gateway_readiness)


async def query_component(api: KubeApi, pod: Manifest) -> PodReport:
    """Returns readiness and metrics of the pod of an operator, an indexer or an autoscaler, whose
    readiness is plain text.
    """
    return await _query(api, pod, pod_port(pod, "http", HTTP_PORT), _component_readiness)


def _gateway_readiness(answer: RawResponse) -> Readiness | MissingValue:
    try:
        return msgspec.json.decode(answer.body, type=Readiness)
    except msgspec.DecodeError:
        return MissingValue(f"/readyz answers {answer.status} with something else than readiness")


def _component_readiness(answer: RawResponse) -> Readiness:
    return Readiness(answer.status == 200, [answer.body.decode("utf-8", "replace").strip()])


async def _query(
    api: KubeApi, pod: Manifest, port: int, read: Callable[[RawResponse], Readiness | MissingValue]
) -> PodReport:
    readiness, metrics = await get_pages(api, pod, port, ("/readyz", "/metrics"))
    return PodReport(
        name_of(pod),
        _space(pod),
        readiness if isinstance(readiness, MissingValue) else read(readiness),
        metrics if isinstance(metrics, MissingValue) else _read_metrics(metrics),
    )


def _read_metrics(answer: RawResponse) -> MetricsPage | MissingValue:
    if answer.status != 200 or answer.truncated:
        return MissingValue("/metrics is too long" if answer.truncated else f"/metrics answers {answer.status}")
    return parse_metrics(answer.body.decode("utf-8", "replace"))


async def get_pages(
    api: KubeApi, pod: Manifest, port: int, paths: Sequence[str]
) -> Sequence[RawResponse | MissingValue]:
    """Returns a pod's answers to GET with any status. After a page that did not come, none of the
    others is asked for: they would take as long to say the same.
    """
    if not (pod.get("status") or {}).get("podIP"):
        return [MissingValue(f"pod {name_of(pod)} has no address yet")] * len(paths)
    errors: list[FairleadError] = []
    ports = ForwardedPorts(api.config, errors.append)
    pages: list[RawResponse | MissingValue] = []
    try:
        async with aiohttp.ClientSession() as session:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                local = await ports.open(PodPort(_space(pod), name_of(pod), port))
            for path in paths:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    pages.append(await _get(session, f"http://127.0.0.1:{local}{path}"))
    except TimeoutError:
        pages.append(MissingValue(f"pod {name_of(pod)} says nothing for {TIMEOUT_SECONDS:.0f} s"))
    except (FairleadError, aiohttp.ClientError, OSError) as error:
        cause = next(iter(errors), error)
        words = cause.message if isinstance(cause, FairleadError) else str(cause) or type(cause).__name__
        pages.append(MissingValue(words, is_forbidden=isinstance(cause, BadInput)))
    finally:
        await ports.close()
    return pages + pages[-1:] * (len(paths) - len(pages))


async def _get(session: aiohttp.ClientSession, url: str) -> RawResponse:
    async with session.get(url) as answer:
        body = bytearray()
        async for piece in answer.content.iter_any():
            body += piece
            if len(body) > MAX_PAGE_BYTES:
                return RawResponse(answer.status, bytes(body[:MAX_PAGE_BYTES]), truncated=True)
        return RawResponse(answer.status, bytes(body))


def _space(pod: Manifest) -> str:
    return str(metadata_of(pod).get("namespace") or "default")
