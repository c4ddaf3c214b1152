"""Is the operator alive: not whether its process runs, but whether it hears the cluster. And what it counts, for Prometheus.

``alive``, ``ready`` and ``stale`` are pure. A process is dead when a watch has been silent for long although the API server answers
others: an operator that is restarted because the API server is away gains nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.kube.resource import Manifest, key_of

SILENT_SECONDS = 180.0
"""No event and no bookmark (the API server sends one a minute) for this long: the watch is dead."""
ANSWERED_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """Ages in seconds, None for never. ``watches``: since each was last heard of. ``answered``: since the API server answered a list.

    ``overdue``: for how long a change that was listed has not come by the watch of models.
    """

    leading: bool = False
    synced: bool = False
    watches: Mapping[str, float | None] = field(default_factory=dict)
    answered: float | None = None
    overdue: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``why`` names what is wrong, or says that all is well."""

    well: bool
    why: str


def alive(pulse: Pulse) -> Verdict:
    """False when only a restart helps."""
    if not pulse.leading:
        return Verdict(True, "another replica leads")
    if pulse.answered is None or pulse.answered > ANSWERED_SECONDS:
        return Verdict(True, "the API server does not answer; a restart would not help")
    if pulse.overdue is not None and pulse.overdue > SILENT_SECONDS:
        return Verdict(False, f"the watch of models has missed a change for {pulse.overdue:.0f} s")
    for kind, age in sorted(pulse.watches.items()):
        if age is not None and age > SILENT_SECONDS:
            return Verdict(False, f"the watch of {kind} has been silent for {age:.0f} s")
    return Verdict(True, "every watch is heard")


def ready(pulse: Pulse) -> Verdict:
    """A replica that waits is ready too: it can take over."""
    if pulse.leading and not pulse.synced:
        return Verdict(False, "not everything has been listed yet")
    return Verdict(True, "leading" if pulse.leading else "waiting to lead")


def stale(pulse: Pulse) -> str:
    """Why what is known may be old, in words; empty when it is fresh. Nothing is deleted while it is not."""
    if not pulse.synced:
        return "not everything has been listed yet"
    if pulse.answered is None or pulse.answered > SILENT_SECONDS:
        return "the API server has not answered for a while"
    old = sorted(kind for kind, age in pulse.watches.items() if age is None or age > SILENT_SECONDS)
    return f"nothing has been heard of {', '.join(old)} for a while" if old else ""


@dataclass(frozen=True, slots=True)
class Figures:
    """What is shown: numbers now, counts since the start, and the models as they were last seen."""

    gauges: Mapping[str, tuple[str, float]]
    counters: Mapping[str, tuple[str, float]]
    models: Iterable[Manifest] = ()


class Metrics(Collector):
    """Reads the figures when somebody asks for them."""

    def __init__(self, read: Callable[[], Figures], pulse: Callable[[], Pulse]) -> None:
        self._read = read
        self._pulse = pulse

    def collect(self) -> list[Metric]:
        """Every family."""
        figures, pulse = self._read(), self._pulse()
        found: list[Metric] = []
        for name, (says, value) in figures.gauges.items():
            found.append(GaugeMetricFamily(f"fairlead_operator_{name}", says, value))
        for name, (says, value) in figures.counters.items():
            found.append(CounterMetricFamily(f"fairlead_operator_{name}", says, value))
        ages = GaugeMetricFamily(
            "fairlead_operator_watch_age_seconds", "since the watch of a kind was last heard of", labels=["kind"]
        )
        for kind, age in sorted(pulse.watches.items()):
            if age is not None:  # never heard is not zero
                ages.add_metric([kind], age)
        found.append(ages)
        found.append(conditions(figures.models))
        return found


def conditions(models: Iterable[Manifest]) -> Metric:
    """What the models' status says, as numbers: alerts name a model and the reason by it."""
    found = GaugeMetricFamily(
        "fairlead_operator_model_condition",
        "1 while the condition is True, 0 while it is not, as the model's status says",
        labels=["model", "type", "reason"],
    )
    for model in models:
        for one in (model.get("status") or {}).get("conditions") or []:
            found.add_metric([key_of(model), one["type"], one["reason"]], float(one["status"] == "True"))
    return found


def application(metrics: Metrics, pulse: Callable[[], Pulse]) -> web.Application:
    """``/healthz``, ``/readyz`` and ``/metrics``."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)

    async def _healthz(_: web.Request) -> web.Response:
        return _answer(alive(pulse()))

    async def _readyz(_: web.Request) -> web.Response:
        return _answer(ready(pulse()))

    async def _metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes([web.get("/healthz", _healthz), web.get("/readyz", _readyz), web.get("/metrics", _metrics)])
    return app


def _answer(verdict: Verdict) -> web.Response:
    return web.Response(status=200 if verdict.well else 503, text=verdict.why + "\n")
