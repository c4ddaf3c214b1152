"""A gateway's ``/metrics`` as values: of all that is there, the part that sizing needs. Pure.

Lines of other metrics are dropped before they are parsed: a page of a large fleet has tens of thousands. What is left takes a third
of a millisecond an instance, most of it in Prometheus' own parser; so that is done in a thread.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from fairlead.errors import Unavailable
from fairlead_autoscaler.deltas import Key

_P: Final = "fairlead_gateway_"
_COUNTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "received_total": "arrivals",
        "received_prompt_tokens_total": "prompt_tokens",
        "abandoned_total": "abandoned",
        "decode_prefills_total": "kept",
        "decode_prefill_tokens_total": "kept_tokens",
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
"""What a gateway counts itself; a name that is not on its page is a zero."""
_RELAYED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "engine_prompt_tokens_total": "prompt_tokens",
        "engine_generation_tokens_total": "generated_tokens",
        "engine_prefix_hits_total": "cached_tokens",
    }
)
"""Engines' counters as the gateway passes them on; one that was not there before had been counting all along."""
_GAUGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "held": "held",
        "instances": "instances",
        "instance_in_flight": "in_flight",
        "instance_waiting": "not_begun",
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
_SECONDS: Final = frozenset({"ttft_seconds", "gap_seconds"})
_MOST: Final = 1e15
"""More was never counted. One gateway's nonsense is not to drown what the others count, nor to make a sum that is no number."""
_UPTIME: Final = _P + "uptime_seconds"
_WANTED: Final = frozenset(_P + name for names in (_COUNTED, _RELAYED, _GAUGES) for name in names) | {_UPTIME}


@dataclass(frozen=True, slots=True)
class Page:
    """One gateway at one moment. Keys are (name, model) or (name, model, instance), with the objective behind where there is one;
    of a shape (name, model, prompt tokens, generated tokens), of the numbers of instances (name, model, state)."""

    uptime_seconds: float
    counted: Mapping[Key, float] = field(default_factory=dict)
    relayed: Mapping[Key, float] = field(default_factory=dict)
    gauges: Mapping[Key, float] = field(default_factory=dict)


def read(text: str, models: Iterable[str], speed: float = 1.0) -> Page:
    """The part of a page that is about ``models``; its seconds are told on a clock that runs ``speed`` times as fast, but for the
    age of what engines said. Raises Unavailable when it is no gateway's."""
    known = frozenset(models)
    lines = [line for line in text.splitlines() if _name(line) in _WANTED]
    counted: dict[Key, float] = {}
    relayed: dict[Key, float] = {}
    gauges: dict[Key, float] = {}
    uptime: float | None = None
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if sample.name == _UPTIME:
                    uptime = sample.value * speed
                    continue
                model = sample.labels.get("model", "")
                if model not in known:
                    continue
                name = sample.name.removeprefix(_P)
                for table, into in ((_COUNTED, counted), (_RELAYED, relayed), (_GAUGES, gauges)):
                    if name in table:
                        times = speed if table[name] in _SECONDS else 1.0
                        if not abs(sample.value) <= _MOST:
                            continue
                        into[(table[name], model, *_rest(sample.labels))] = sample.value * times
    except (ValueError, KeyError, IndexError) as error:
        raise Unavailable(f"its metrics cannot be read ({type(error).__name__})") from error
    if uptime is None or not 0.0 <= uptime < math.inf:
        raise Unavailable("what it answers is no gateway's metrics")
    return Page(uptime, counted, relayed, gauges)


def _name(line: str) -> str:
    """The metric's name of a line; comments have none."""
    return line.partition("{")[0].partition(" ")[0]


def _rest(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(labels[name] for name in _LABELS if name in labels)
