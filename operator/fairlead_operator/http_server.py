"""The operator's HTTP endpoints: `/healthz`, `/readyz` and `/metrics`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fairlead.kube.resources import Manifest, key_of
from fairlead.runtime.aiohttp_server import add_probes, refuse_foreign_pages
from fairlead_operator.health import HealthState, check_liveness, check_readiness


@dataclass(frozen=True, slots=True)
class OperatorMetrics:
    """Metric values: gauges, counters since the start, and the models as last observed."""

    gauges: Mapping[str, tuple[str, float]]
    counters: Mapping[str, tuple[str, float]]
    models: Iterable[Manifest] = ()


class MetricsCollector(Collector):
    """A collector that reads the metric values at each scrape."""

    def __init__(self, metrics: Callable[[], OperatorMetrics], health: Callable[[], HealthState]) -> None:
        self._metrics = metrics
        self._health = health

    def collect(self) -> list[Metric]:
        """Returns every metric family."""
        metrics, health = self._metrics(), self._health()
        families: list[Metric] = []
        for name, (description, value) in metrics.gauges.items():
            families.append(GaugeMetricFamily(f"fairlead_operator_{name}", description, value))
        for name, (description, value) in metrics.counters.items():
            families.append(CounterMetricFamily(f"fairlead_operator_{name}", description, value))
        ages = GaugeMetricFamily(
            "fairlead_operator_watch_age_seconds", "time since the last event of a kind's watch", labels=["kind"]
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
        "1 if the condition of the model's status is True, 0 if not",
        labels=["model", "type", "reason"],
    )
    for model in models:
        for condition in (model.get("status") or {}).get("conditions") or []:
            family.add_metric(
                [key_of(model), condition["type"], condition["reason"]], float(condition["status"] == "True")
            )
    return family


def make_application(metrics: MetricsCollector, health: Callable[[], HealthState]) -> web.Application:
    """Returns the application with the three endpoints."""
    app = web.Application(middlewares=[refuse_foreign_pages])
    add_probes(app, metrics, lambda: check_liveness(health()), lambda: check_readiness(health()))
    return app
