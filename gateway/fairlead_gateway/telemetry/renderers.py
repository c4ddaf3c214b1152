"""Renderers: functions that write the lines of one metric family.

An unknown value has no line: missing is not zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from fairlead.fleet.model import Fleet, Instance, InstanceState
from fairlead.fleet.signals import EngineSignals
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.adapters import metric_series
from fairlead_gateway.adapters.metric_series import AdapterSeries
from fairlead_gateway.errors import InvalidApiKey, QuarantinedRequest
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry.counters import (
    FINE_PER_DOUBLING,
    OVERHEAD_BOUNDS,
    SECONDS_BOUNDS,
    TOKEN_BOUNDS,
    ModelCounters,
)
from fairlead_gateway.telemetry.decision_log import COMPARED, SHADOW_SIDES
from fairlead_gateway.telemetry.prometheus_text import escape_label, format_histogram
from fairlead_gateway.telemetry.status_types import (
    IndexState,
    IndexStatus,
    InstanceIndexStatus,
    LoadView,
    ModelIndexStatus,
    PublishStats,
    TenantValues,
)

_MODEL: Final = 'model="{}"'
_EXPORTED_SECONDS: Final = tuple(
    (index, f"{SECONDS_BOUNDS[index]:.6g}") for index in range(0, len(SECONDS_BOUNDS), FINE_PER_DOUBLING)
)
_EXPORTED_TOKENS: Final = tuple((index, f"{bound:.0f}") for index, bound in enumerate(TOKEN_BOUNDS))
_EXPORTED_OVERHEAD: Final = tuple((index, f"{bound:.6g}") for index, bound in enumerate(OVERHEAD_BOUNDS))
GENAI_LABELS: Final = 'gen_ai_provider_name="fairlead",gen_ai_request_model="{}"'
OBJECTIVE_LABELS: Final = 'model_name="{}",target_model_name="{}"'
INPUT_POSITIONS: Final = (at.INPUT_SIZE, at.PROMPT_TOKENS)
OUTPUT_POSITIONS: Final = (at.OUTPUT_SIZE, at.OUTPUT_TOKENS)


@dataclass(frozen=True, slots=True)
class Scrape:
    """The values that all families are rendered from."""

    models: Mapping[str, ModelCounters]
    fleet: Fleet
    loads: Mapping[str, LoadView]
    lag: LoopLag | None
    publish_stats: PublishStats | None
    now: float
    uptime_seconds: float
    process_values: Mapping[str, float]
    queued: Mapping[str, int]
    ejection_seconds: Mapping[str, float]
    index_status: IndexStatus
    tenant_values: TenantValues
    adapters: AdapterSeries

    def instances(self) -> Iterator[tuple[str, Instance]]:
        for key, instances in self.fleet.instances.items():
            for instance in instances:
                yield key, instance


Renderer: TypeAlias = Callable[[str, Scrape], Iterable[str]]


def counter(position: int) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, series in scrape.models.items():
            yield f'{name}{{model="{escape_label(key)}"}} {series.ints[position]}\n'

    return lines


def instance_counter(position: int) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, series in scrape.models.items():
            for instance_id, instance in series.instances.items():
                yield f"{name}{_instance_labels(key, instance_id)} {instance.ints[position]}\n"

    return lines


def instance_summary(count: int, total: int) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, series in scrape.models.items():
            for instance_id, instance in series.instances.items():
                labels = _instance_labels(key, instance_id)
                yield f"{name}_sum{labels} {instance.sums[total]:.9g}\n{name}_count{labels} {instance.ints[count]}\n"

    return lines


def _instance_labels(key: str, instance_id: str) -> str:
    return f'{{model="{escape_label(key)}",instance="{escape_label(instance_id)}"}}'


def histogram(start: int, total: int, labels: str = _MODEL) -> Renderer:
    """Returns the renderer of a histogram of seconds.

    start, total: positions of its first bucket, and of the sum of seconds.
    """
    return _histogram_of(start, at.SECONDS_BINS, _EXPORTED_SECONDS, lambda series: f"{series.sums[total]:.9g}", labels)


def tokens(start: int, total: int, labels: str = _MODEL) -> Renderer:
    """Returns the renderer of a histogram of tokens.

    start, total: positions of its first bucket, and of the counter that is the sum of tokens.
    """
    return _histogram_of(start, at.TOKEN_BINS, _EXPORTED_TOKENS, lambda series: str(series.ints[total]), labels)


def overhead(start: int, total: int) -> Renderer:
    return _histogram_of(
        start, at.OVERHEAD_BINS, _EXPORTED_OVERHEAD, lambda series: f"{series.sums[total]:.9g}", _MODEL
    )


def _histogram_of(
    start: int, bins: int, exported: Sequence[tuple[int, str]], total: Callable[[ModelCounters], str], labels: str
) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, series in scrape.models.items():
            escaped = escape_label(key)
            counts = series.ints[start : start + bins]
            yield format_histogram(name, labels.format(escaped, escaped), counts, exported, total(series))

    return lines


def statuses(name: str, scrape: Scrape) -> Iterator[str]:
    for key, series in scrape.models.items():
        for status, value in sorted(series.by_status.items()):
            yield f'{name}{{model="{escape_label(key)}",status="{status or "other"}"}} {value}\n'


def rejections(name: str, scrape: Scrape) -> Iterator[str]:
    for key, series in scrape.models.items():
        for (status, kind), value in sorted(series.by_kind.items()):
            yield f'{name}{{model="{escape_label(key)}",status="{status}",kind="{escape_label(kind)}"}} {value}\n'


def shapes(name: str, scrape: Scrape) -> Iterator[str]:
    for key, series in scrape.models.items():
        for shape, value in sorted(series.by_shape.items()):
            prompt, output = at.REQUEST_SHAPES.bucket_center(shape)
            labels = f'model="{escape_label(key)}",prompt_tokens="{prompt:.0f}",output_tokens="{output:.0f}"'
            yield f"{name}{{{labels}}} {value}\n"


def by_labels(first: str, second: str, table: Callable[[ModelCounters], Mapping[tuple[str, str], int]]) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, series in scrape.models.items():
            for (one, other), value in sorted(table(series).items()):
                labels = f'model="{escape_label(key)}",{first}="{escape_label(one)}",{second}="{escape_label(other)}"'
                yield f"{name}{{{labels}}} {value}\n"

    return lines


def _shadow_sums(scrape: Scrape, name: str) -> Iterator[tuple[str, str, int, Mapping[tuple[str, str], int]]]:
    """Yields the labels, the original and the count of each comparison, and the sums of its
    model.
    """
    for key, series in scrape.models.items():
        for (original, counted), value in sorted(series.shadow_sums.items()):
            if counted == name:
                labels = f'model="{escape_label(key)}",original="{escape_label(original)}"'
                yield labels, original, value, series.shadow_sums


def shadow_compared(name: str, scrape: Scrape) -> Iterator[str]:
    for labels, _, count, _ in _shadow_sums(scrape, COMPARED):
        yield f"{name}{{{labels}}} {count}\n"


def shadow_errors(name: str, scrape: Scrape) -> Iterator[str]:
    for labels, original, _, sums in _shadow_sums(scrape, COMPARED):
        for side in SHADOW_SIDES:
            yield f'{name}{{{labels},side="{side}"}} {sums.get((original, f"errors:{side}"), 0)}\n'


def shadow_summary(value: str, unit: float) -> Renderer:
    """Returns the renderer of a sum over both sides of comparisons.

    unit: of the counted integers.
    """

    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for labels, original, count, sums in _shadow_sums(scrape, value):
            for side in SHADOW_SIDES:
                own = f'{{{labels},side="{side}"}}'
                yield f"{name}_sum{own} {sums[original, f'{value}:{side}'] * unit:.9g}\n{name}_count{own} {count}\n"

    return lines


def _count_rejections(series: ModelCounters, code: str) -> int:
    return sum(value for (_, kind), value in series.by_kind.items() if kind == code)


def keys_refused(name: str, scrape: Scrape) -> Iterator[str]:
    yield f"{name} {sum(_count_rejections(series, InvalidApiKey.code) for series in scrape.models.values())}\n"


def quarantined(name: str, scrape: Scrape) -> Iterator[str]:
    for key, series in scrape.models.items():
        yield f'{name}{{model="{escape_label(key)}"}} {_count_rejections(series, QuarantinedRequest.code)}\n'


def process_value(key: str) -> Renderer:
    return lambda name, scrape: [f"{name} {scrape.process_values[key]}\n"] if key in scrape.process_values else []


def tenant_value(key: str) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for tenant, value in scrape.tenant_values.get(key, ()):
            yield f'{name}{{tenant="{escape_label(tenant)}"}} {value:.15g}\n'

    return lines


def adapter_counter(position: int) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, counts in scrape.adapters.rows():
            yield f"{name}{_adapter_labels(*key)} {counts[position]}\n"

    return lines


def adapter_loads(name: str, scrape: Scrape) -> Iterator[str]:
    for key, counts in scrape.adapters.rows():
        labels, seconds = _adapter_labels(*key), counts[metric_series.LOAD_MICROSECONDS] / 1e6
        yield f"{name}_sum{labels} {seconds:.9g}\n{name}_count{labels} {counts[metric_series.LOADS]}\n"


def _adapter_labels(model: str, adapter: str) -> str:
    return f'{{model="{escape_label(model)}",adapter="{escape_label(adapter)}"}}'


def by_label(label: str, table: Callable[[ModelCounters], Mapping[str, int]]) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, series in scrape.models.items():
            for value, counted in sorted(table(series).items()):
                yield f'{name}{{model="{escape_label(key)}",{label}="{escape_label(value)}"}} {counted}\n'

    return lines


def objective(ttft: int, itl: int, both: int) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, series in scrape.models.items():
            for objective, position in (("all", both), ("itl", itl), ("ttft", ttft)):
                yield f'{name}{{model="{escape_label(key)}",objective="{objective}"}} {series.ints[position]}\n'

    return lines


def model_load(read: Callable[[LoadView], int], labels: str = _MODEL) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key in scrape.fleet.models:
            ids = (instance.id for instance in scrape.fleet.instances.get(key, ()))
            total = sum(read(scrape.loads[instance_id]) for instance_id in ids if instance_id in scrape.loads)
            yield f"{name}{{{labels.format(escape_label(key), escape_label(key))}}} {total}\n"

    return lines


def queued(name: str, scrape: Scrape) -> Iterator[str]:
    for key in scrape.fleet.models:
        yield f'{name}{{model="{escape_label(key)}"}} {scrape.queued.get(key, 0)}\n'


def instance_objective(name: str, scrape: Scrape, ttft: int, itl: int) -> Iterator[str]:
    for key, series in scrape.models.items():
        for instance_id, instance in series.instances.items():
            labels = _instance_labels(key, instance_id)[:-1]
            for objective, position in (("itl", itl), ("ttft", ttft)):
                yield f'{name}{labels},objective="{objective}"}} {instance.ints[position]}\n'


def instance_load(read: Callable[[LoadView], float]) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, instance in scrape.instances():
            load = scrape.loads.get(instance.id)
            if load is not None:
                yield f"{name}{_instance_labels(key, instance.id)} {read(load):.9g}\n"

    return lines


def ejection_seconds(name: str, scrape: Scrape) -> Iterator[str]:
    for key, instance in scrape.instances():
        seconds = scrape.ejection_seconds.get(instance.id)
        if seconds is not None:
            yield f"{name}{_instance_labels(key, instance.id)} {seconds:.9g}\n"


def states(name: str, scrape: Scrape) -> Iterator[str]:
    for key in scrape.fleet.models:
        instances = scrape.fleet.instances.get(key, ())
        for state in InstanceState:
            count = sum(instance.state is state for instance in instances)
            yield f'{name}{{model="{escape_label(key)}",state="{state}"}} {count}\n'


def signal(read: Callable[[EngineSignals], float | None]) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, instance in scrape.instances():
            value = None if instance.signals is None else read(instance.signals)
            if value is not None:
                yield f"{name}{_engine_labels(key, instance)} {value:.15g}\n"

    return lines


def signals_age(name: str, scrape: Scrape) -> Iterator[str]:
    for key, instance in scrape.instances():
        if instance.received_at is not None:
            yield f"{name}{_engine_labels(key, instance)} {max(0.0, scrape.now - instance.received_at):.3f}\n"


def _engine_labels(key: str, instance: Instance) -> str:
    return (
        f'{{model="{escape_label(key)}",instance="{escape_label(instance.id)}",pool="{escape_label(instance.pool)}"}}'
    )


def gauge(read: Callable[[Scrape], float]) -> Renderer:
    return lambda name, scrape: [f"{name} {read(scrape):.15g}\n"]


def publish_stat(read: Callable[[PublishStats], float]) -> Renderer:
    return lambda name, scrape: [] if scrape.publish_stats is None else [f"{name} {read(scrape.publish_stats):.15g}\n"]


def index_value(read: Callable[[InstanceIndexStatus], float | None]) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for key, look in scrape.index_status.items():
            for instance, one in look.instances.items():
                value = read(one)
                if value is not None:
                    yield f"{name}{_instance_labels(key, instance)} {value:.9g}\n"

    return lines


def index_model_value(read: Callable[[ModelIndexStatus], int]) -> Renderer:
    return lambda name, scrape: [
        f'{name}{{model="{escape_label(key)}"}} {read(look)}\n' for key, look in scrape.index_status.items()
    ]


def index_state(name: str, scrape: Scrape) -> Iterator[str]:
    for key, look in scrape.index_status.items():
        for state in IndexState:
            count = sum(one.state is state for one in look.instances.values())
            yield f'{name}{{model="{escape_label(key)}",state="{state}"}} {count}\n'


def loop_lag(name: str, scrape: Scrape) -> Iterator[str]:
    for share in (0.5, 0.99, 1.0):
        value = None if scrape.lag is None else scrape.lag.quantile(share)
        if value is not None:
            yield f'{name}{{quantile="{share:g}"}} {value:.6g}\n'


def token_usage(name: str, scrape: Scrape) -> Iterator[str]:
    for kind, start, total in (("input", *INPUT_POSITIONS), ("output", *OUTPUT_POSITIONS)):
        yield from tokens(start, total, f'{GENAI_LABELS},gen_ai_token_type="{kind}"')(name, scrape)


def objective_requests(name: str, scrape: Scrape) -> Iterator[str]:
    for key, series in scrape.models.items():
        yield f"{name}{{{OBJECTIVE_LABELS.format(escape_label(key), escape_label(key))}}} {sum(series.by_status.values())}\n"


def objective_errors(name: str, scrape: Scrape) -> Iterator[str]:
    for key, series in scrape.models.items():
        labels = OBJECTIVE_LABELS.format(escape_label(key), escape_label(key))
        for status, value in sorted(series.by_status.items()):
            if status >= 400:
                yield f'{name}{{{labels},error_code="{status}"}} {value}\n'


def _pools(scrape: Scrape) -> dict[str, list[Instance]]:
    pools: dict[str, list[Instance]] = {}
    for _, instance in scrape.instances():
        labels = f'name="{escape_label(instance.model)}-{escape_label(instance.pool)}",namespace="{escape_label(instance.namespace)}"'
        pools.setdefault(labels, []).append(instance)
    return pools


def pool_mean(read: Callable[[EngineSignals], float | None]) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for labels, instances in _pools(scrape).items():
            told = [read(instance.signals) for instance in instances if instance.signals is not None]
            values = [value for value in told if value is not None]
            if values:
                yield f"{name}{{{labels}}} {sum(values) / len(values):.9g}\n"

    return lines


def pool_ready(name: str, scrape: Scrape) -> Iterator[str]:
    for labels, instances in _pools(scrape).items():
        yield f"{name}{{{labels}}} {sum(instance.state is InstanceState.READY for instance in instances)}\n"


def pool_queues(label: str) -> Renderer:
    def lines(name: str, scrape: Scrape) -> Iterator[str]:
        for labels, instances in _pools(scrape).items():
            for instance in instances:
                if instance.signals is not None and instance.signals.waiting is not None:
                    yield f'{name}{{{labels},{label}="{escape_label(instance.id)}"}} {instance.signals.waiting:.9g}\n'

    return lines
