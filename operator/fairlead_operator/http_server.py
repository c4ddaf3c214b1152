"""The operator's HTTP endpoints: `/healthz`, `/readyz` and `/metrics`."""

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
    """Metric values: gauges, counters since the start, and the models as last seen."""

    gauges: Mapping[str, tuple[str, float]]
    counters: Mapping[str, tuple[str, float]]
    models: Iterable[Manifest] = ()


class MetricsCollector(Collector):
    """Reads the metric values at each scrape."""

    def __init__(self, read: Callable[[], OperatorMetrics], pulse: Callable[[], HealthState]) -> None:
        self._read = read
        self._pulse = pulse

    def collect(self) -> list[Metric]:
        """Returns every metric family."""
        metrics, health = self._read(), self._pulse()
        families: list[Metric] = []
        for name, (says, value) in metrics.gauges.items():
            families.append(GaugeMetricFamily(f"fairlead_operator_{name}", says, value))
        for name, (says, value) in metrics.counters.items():
            families.append(CounterMetricFamily(f"fairlead_operator_{name}", says, value))
        ages = GaugeMetricFamily(
            "fairlead_operator_watch_age_seconds", "since the watch of a kind was last heard of", labels=["kind"]
        )
        for kind, age in sorted(health.watch_ages.items()):
            if age is not None:  # no contact yet is not zero
                ages.add_metric([kind], age)
        families.append(ages)
        families.append(condition_metric(metrics.models))
        return families


def condition_metric(models: Iterable[Manifest]) -> Metric:
    """Returns the models' conditions as a metric, which alerts use for model and reason."""
    family = GaugeMetricFamily(
        "fairlead_operator_model_condition",
        "1 while the condition is True, 0 while it is not, as the model's status says",
        labels=["model", "type", "reason"],
    )
    for model in models:
        for condition in (model.get("status") or {}).get("conditions") or []:
            family.add_metric(
                [key_of(model), condition["type"], condition["reason"]], float(condition["status"] == "True")
            )
    return family


def make_application(metrics: MetricsCollector, pulse: Callable[[], HealthState]) -> web.Application:
    """Returns the application with the three endpoints."""
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
