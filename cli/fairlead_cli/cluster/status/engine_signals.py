"""Engine signals that gateways relay: one value for each instance, from the metrics of all gateways
that answered. Pure.

Engine figures are the same at every gateway, so the freshest copy counts; the gateways' own counts
add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead_cli.cluster.metrics_page import MetricsPage

_ENGINE, _GATEWAY = "fairlead_gateway_engine_", "fairlead_gateway_instance_"


@dataclass(frozen=True, slots=True)
class EngineSignals:
    """Signals of one instance; None is unknown.

    in_flight: sum over the gateways.

    age_seconds: of the engine's own figures.
    """

    id: str
    pool: str | None = None
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    hit_share: float | None = None
    preemptions: float | None = None
    sleeping: bool = False
    age_seconds: float | None = None
    in_flight: float | None = None


def signals_by_instance(pages: Sequence[MetricsPage], model: str) -> dict[str, EngineSignals]:
    """Returns signals by instance id; ``model`` is ``namespace/name``."""
    signals: dict[str, EngineSignals] = {}
    for page in pages:
        for sample in page.matching(f"{_ENGINE}signals_age_seconds", model=model):
            instance = sample.labels.get("instance", "")
            known = signals.get(instance)
            if known is None or known.age_seconds is None or sample.value < known.age_seconds:
                signals[instance] = _read(page, model, instance, sample.labels.get("pool"), sample.value)
        for sample in page.matching(f"{_GATEWAY}in_flight", model=model):
            signals.setdefault(sample.labels.get("instance", ""), EngineSignals(sample.labels.get("instance", "")))
    return {
        instance: _with_in_flight(instance_signals, pages, model)
        for instance, instance_signals in sorted(signals.items())
    }


def ready_instances(page: MetricsPage, model: str) -> float | None:
    """Returns how many instances a gateway routes to; None when it does not know the model."""
    return page.value("fairlead_gateway_instances", model=model, state="Ready")


def _read(page: MetricsPage, model: str, name: str, pool: str | None, age: float) -> EngineSignals:
    def read(what: str) -> float | None:
        return page.value(f"{_ENGINE}{what}", model=model, instance=name)

    queries, hits = read("prefix_queries_total"), read("prefix_hits_total")
    return EngineSignals(
        id=name,
        pool=pool,
        running=read("running"),
        waiting=read("waiting"),
        kv_usage=read("kv_usage"),
        hit_share=hits / queries if queries and hits is not None else None,
        preemptions=read("preemptions_total"),
        sleeping=read("sleeping") == 1.0,
        age_seconds=age,
    )


def _with_in_flight(signals: EngineSignals, pages: Sequence[MetricsPage], model: str) -> EngineSignals:
    counts = [page.value(f"{_GATEWAY}in_flight", model=model, instance=signals.id) for page in pages]
    known = [count for count in counts if count is not None]
    return replace(signals, in_flight=sum(known) if known else None)
