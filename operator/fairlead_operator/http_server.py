"""What probes and Prometheus ask the operator: its pulse, and what it counts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.kube.resources import Manifest, key_of
from fairlead_operator.health import HealthState, ProbeResult, check_liveness, check_readiness


@dataclass(frozen=True, slots=True)
class OperatorMetrics:
    """What is shown: numbers now, counts since the start, and the models as they were last seen."""

    gauges: Mapping[str, tuple[str, float]]
    counters: Mapping[str, tuple[str, float]]
    models: Iterable[Manifest] = ()


class MetricsCollector(Collector):
    """Reads the figures when somebody asks for them."""

    def __init__(self, read: Callable[[], OperatorMetrics], pulse: Callable[[], HealthState]) -> None:
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
        for kind, age in sorted(pulse.watch_ages.items()):
            if age is not None:  # never heard is not zero
                ages.add_metric([kind], age)
        found.append(ages)
        found.append(condition_metric(figures.models))
        return found


def condition_metric(models: Iterable[Manifest]) -> Metric:
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


def make_application(metrics: MetricsCollector, pulse: Callable[[], HealthState]) -> web.Application:
    """``/healthz``, ``/readyz`` and ``/metrics``."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)

    async def _healthz(_: web.Request) -> web.Response:
        return _to_response(check_liveness(pulse()))

    async def _readyz(_: web.Request) -> web.Response:
        return _to_response(check_readiness(pulse()))

    async def _metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes([web.get("/healthz", _healthz), web.get("/readyz", _readyz), web.get("/metrics", _metrics)])
    return app


def _to_response(verdict: ProbeResult) -> web.Response:
    return web.Response(status=200 if verdict.ok else 503, text=verdict.reason + "\n")
