"""Metrics parser: the part of a gateway's `/metrics` page that sizing needs. Pure.

Lines of other metrics are dropped before they are parsed. Callers parse pages in a thread.

Why: a page of a large fleet has tens of thousands of lines. The lines that sizing needs take a
third of a millisecond per instance, most of it in Prometheus' own parser.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from fairlead.errors import Unavailable
from fairlead_autoscaler.collector.counter_deltas import CounterKey

_PREFIX: Final = "fairlead_gateway_"
_COUNTERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "received_total": "arrivals",
        "received_prompt_tokens_total": "prompt_tokens",
        "abandoned_total": "abandoned",
        "decode_prefills_total": "kept",
        "decode_prefill_tokens_total": "kept_tokens",
        "moved_rest_seconds_sum": "moved_rest_seconds",
        "moved_rest_seconds_count": "moved_streams",
        "request_shapes_total": "shapes",
        "instance_finished_total": "finished",
        "instance_computed_tokens_total": "computed_tokens",
        "instance_output_tokens_total": "output_tokens",
        "instance_ttft_seconds_sum": "ttft_seconds",
        "instance_ttft_seconds_count": "first_tokens",
        "instance_itl_seconds_sum": "gap_seconds",
        "instance_itl_seconds_count": "gaps",
        "instance_within_objective_total": "within",
        "instance_judged_total": "judged",
    }
)
"""Counters of the gateway itself; one that is missing on its page is zero."""
_ENGINE_COUNTERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "engine_prompt_tokens_total": "prompt_tokens",
        "engine_generation_tokens_total": "generated_tokens",
        "engine_prefix_hits_total": "cached_tokens",
    }
)
"""Counters of engines that the gateway reports; a new one may have counted for a long time."""
_GAUGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "held": "held",
        "instances": "instances",
        "instance_in_flight": "in_flight",
        "instance_waiting": "not_begun",
        "instance_ejected_seconds": "ejected_seconds",
        "engine_running": "running",
        "engine_waiting": "waiting",
        "engine_kv_usage": "kv_share",
        "engine_sleeping": "sleeping",
        "engine_signals_age_seconds": "age_seconds",
        "index_unique_used_blocks": "unique_used_blocks",
        "index_unique_blocks": "unique_blocks",
    }
)
_LABELS: Final = ("instance", "objective", "prompt_tokens", "output_tokens", "state")
_SECONDS: Final = frozenset({"ttft_seconds", "gap_seconds", "moved_rest_seconds"})
_MAX_VALUE: Final = 1e15
"""The largest value that is accepted, and none is negative. One gateway's bad value must not hide
what the others count, or make a sum infinite.
"""
_MAX_GAUGE: Final = 1e9
"""The same of requests, seconds and blocks at one moment."""
_MAX_LINE_CHARS: Final = 4_096
"""Characters of a line: Prometheus' parser takes quadratic time for one with many labels."""
_MAX_LINES: Final = 200_000
"""Lines that sizing needs; 4,096 engines have about 90,000."""
_UPTIME_METRIC: Final = _PREFIX + "uptime_seconds"
_METRIC_NAMES: Final = frozenset(
    _PREFIX + name for names in (_COUNTERS, _ENGINE_COUNTERS, _GAUGES) for name in names
) | {_UPTIME_METRIC}


@dataclass(frozen=True, slots=True)
class GatewayPage:
    """The metrics of one gateway at one moment.

    Keys are (name, model) or (name, model, instance), with the latency target as the last part if
    there is one. Shapes have (name, model, prompt tokens, output tokens), numbers of instances
    (name, model, state).
    """

    uptime_seconds: float
    counters: Mapping[CounterKey, float] = field(default_factory=dict)
    engine_counters: Mapping[CounterKey, float] = field(default_factory=dict)
    gauges: Mapping[CounterKey, float] = field(default_factory=dict)


def parse_page(text: str, models: Iterable[str], speed: float = 1.0) -> GatewayPage:
    """Returns the part of a page that is about `models`. Raises Unavailable if it is not a
    gateway's page.

    speed: the factor on seconds of the gateway's clock; the age of engine reports is not scaled.
    """
    known = frozenset(models)
    # A comment begins with no name of a metric.
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in _METRIC_NAMES]
    if len(lines) > _MAX_LINES or max(map(len, lines), default=0) > _MAX_LINE_CHARS:
        raise Unavailable(f"its metrics have over {_MAX_LINES} lines, or one of over {_MAX_LINE_CHARS} characters")
    counters: dict[CounterKey, float] = {}
    engine_counters: dict[CounterKey, float] = {}
    gauges: dict[CounterKey, float] = {}
    uptime: float | None = None
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if sample.name == _UPTIME_METRIC:
                    uptime = sample.value * speed
                    continue
                model = sample.labels.get("model", "")
                if model not in known:
                    continue
                name = sample.name.removeprefix(_PREFIX)
                for table, into in ((_COUNTERS, counters), (_ENGINE_COUNTERS, engine_counters), (_GAUGES, gauges)):
                    if name in table:
                        times = speed if table[name] in _SECONDS else 1.0
                        # A value out of range is missing; the rest of the page still counts.
                        if not 0.0 <= sample.value <= (_MAX_GAUGE if table is _GAUGES else _MAX_VALUE):
                            continue
                        into[(table[name], model, *_label_values(sample.labels))] = sample.value * times
    except (ValueError, KeyError, IndexError) as error:
        raise Unavailable(f"its metrics cannot be read ({type(error).__name__})") from error
    if uptime is None or not 0.0 <= uptime < math.inf:
        raise Unavailable("its response is not the metrics page of a gateway")
    return GatewayPage(uptime, counters, engine_counters, gauges)


def _label_values(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(labels[name] for name in _LABELS if name in labels)
