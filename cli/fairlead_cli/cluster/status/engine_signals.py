"""What gateways relay of engines: a value for each instance, put together from the metrics of all gateways that were reached. Pure.

What engines say is the same at every gateway, so the freshest copy counts; what gateways count themselves adds up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fairlead_cli.cluster.metrics_page import MetricsPage

_ENGINE, _GATEWAY = "fairlead_gateway_engine_", "fairlead_gateway_instance_"


@dataclass(frozen=True, slots=True)
class EngineSignals:
    """Of one instance; None: nobody told. ``in_flight`` is the gateways' sum, ``age_seconds`` that of the engine's own figures."""

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
    """By instance id; ``model`` is ``namespace/name``."""
    found: dict[str, EngineSignals] = {}
    for page in pages:
        for sample in page.matching(f"{_ENGINE}signals_age_seconds", model=model):
            name = sample.labels.get("instance", "")
            before = found.get(name)
            if before is None or before.age_seconds is None or sample.value < before.age_seconds:
                found[name] = _read(page, model, name, sample.labels.get("pool"), sample.value)
        for sample in page.matching(f"{_GATEWAY}in_flight", model=model):
            found.setdefault(sample.labels.get("instance", ""), EngineSignals(sample.labels.get("instance", "")))
    return {name: _with_in_flight(one, pages, model) for name, one in sorted(found.items())}


def ready_instances(page: MetricsPage, model: str) -> float | None:
    """How many a gateway routes to; None when it does not say, as it may of a model that it does not know."""
    return page.value("fairlead_gateway_instances", model=model, state="Ready")


def _read(page: MetricsPage, model: str, name: str, pool: str | None, age: float) -> EngineSignals:
    def said(what: str) -> float | None:
        return page.value(f"{_ENGINE}{what}", model=model, instance=name)

    queries, hits = said("prefix_queries_total"), said("prefix_hits_total")
    return EngineSignals(
        id=name,
        pool=pool,
        running=said("running"),
        waiting=said("waiting"),
        kv_usage=said("kv_usage"),
        hit_share=hits / queries if queries and hits is not None else None,
        preemptions=said("preemptions_total"),
        sleeping=said("sleeping") == 1.0,
        age_seconds=age,
    )


def _with_in_flight(one: EngineSignals, pages: Sequence[MetricsPage], model: str) -> EngineSignals:
    counts = [page.value(f"{_GATEWAY}in_flight", model=model, instance=one.id) for page in pages]
    known = [count for count in counts if count is not None]
    return replace(one, in_flight=sum(known) if known else None)
