"""Sources of metrics: each function returns the rows of a metric, or a metric with its rows.

The text is that of Prometheus (version 0.0.4). An unknown value has no line: missing is not zero.
Histograms are kept finer than they are exported, which costs nothing since exported buckets are
cumulative.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, TypeAlias

from fairlead.fleet.model import Fleet, Instance, InstanceState
from fairlead.fleet.signals import EngineSignals
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.errors import InvalidApiKey
from fairlead_gateway.telemetry import adapter_series as metric_series
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry.adapter_series import AdapterSeries
from fairlead_gateway.telemetry.counters import InstanceCounters, ModelCounters
from fairlead_gateway.telemetry.decision_log import COMPARED, SHADOW_SIDES
from fairlead_gateway.telemetry.status_types import (
    IndexState,
    IndexStatus,
    InstanceIndexStatus,
    LoadView,
    ModelIndexStatus,
    TenantValues,
)

_FIXED_LABELS: Final = {"gen_ai_provider_name": "fairlead", "streaming": "true"}
_UNSAFE: Final = re.compile(r'[\\"\n]')
_ESCAPES: Final = {"\\": r"\\", '"': r"\"", "\n": r"\n"}

Row: TypeAlias = tuple[str | float, ...]
"""Label values, then the value; of a summary sum and count; of a histogram its cumulative buckets,
sum and count.
"""

_Buckets: TypeAlias = tuple[tuple[int, str], ...]
"""For each exported bound, the last position in the kept buckets below it, and its text."""
_SECONDS: Final[_Buckets] = tuple(
    (index, f"{at.SECONDS_BOUNDS[index]:.6g}") for index in range(0, len(at.SECONDS_BOUNDS), at.FINE_PER_DOUBLING)
)
OVERHEAD: Final[_Buckets] = tuple((index, f"{bound:.6g}") for index, bound in enumerate(at.OVERHEAD_BOUNDS))
TOKENS: Final[_Buckets] = tuple((index, f"{bound:.0f}") for index, bound in enumerate(at.TOKEN_BOUNDS))

_Table: TypeAlias = (
    Mapping[str, int] | Mapping[int, int] | Mapping[tuple[str, str], int] | Mapping[tuple[int, str], int]
)

_RERUN_REASONS = ("abandoned", "failed", "gateway-lost", "memory", "too-long", "worker-lost")


@dataclass(frozen=True, slots=True)
class Scrape:
    """The values that all metrics are rendered from."""

    models: Mapping[str, ModelCounters]
    fleet: Fleet
    loads: Mapping[str, LoadView]
    lag: LoopLag | None
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

    def instance_counters(self) -> Iterator[tuple[str, str, InstanceCounters]]:
        for key, series in self.models.items():
            for instance_id, instance in series.instances.items():
                yield key, instance_id, instance


Rows: TypeAlias = Callable[[Scrape], Iterable[Row]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family of Prometheus.

    lines: the suffix of each line of a row, and what its labels end with.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    rows: Rows
    lines: Sequence[tuple[str, str]] = (("", ""),)

    def render(self, scrape: Scrape, escaped: "EscapedLabels") -> str:
        """Returns the text of the metric; without a value it is only the HELP and TYPE lines."""
        count, template = self._template()
        label, text = escaped.__getitem__, template.format
        lines = [text(*map(label, row[:count]), *row[count:]) for row in self.rows(scrape)]
        return f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n{''.join(lines)}"

    def _template(self) -> tuple[int, str]:
        """Returns the number of label values of a row, and the format string of a row.

        Its fields are these values, then the value of each line.

        `target_model_name` has the value of the label before it.
        """
        labels, count = [], 0
        for label in self.labels:
            if label in _FIXED_LABELS:
                labels.append(f'{label}="{_FIXED_LABELS[label]}"')
                continue
            count += label != "target_model_name"
            labels.append(f'{label}="{{{count - 1}}}"')
        template = ""
        for position, (suffix, last) in enumerate(self.lines, count):
            shown = ",".join([*labels, last] if last else labels)
            template += self.name + suffix + (f"{{{{{shown}}}}}" if shown else "") + f" {{{position}}}\n"
        return count, template


class EscapedLabels(dict[str | float, str]):
    """Label values with backslashes, quotes and line ends escaped; each is escaped once."""

    def __missing__(self, value: str | float) -> str:
        escaped = self[value] = _UNSAFE.sub(lambda match: _ESCAPES[match[0]], str(value))
        return escaped


def metric(name: str, rows: Rows, text: str, kind: str = "") -> Metric:
    """Returns a counter if the name ends with `_total`, else a gauge.

    name: with the names of its labels in braces.
    """
    name, _, labels = name.rstrip("}").partition("{")
    kind = kind or ("counter" if name.endswith("_total") else "gauge")
    return Metric(name, kind, tuple(labels.split(",")) if labels else (), text, rows)


def summary(name: str, rows: Rows, text: str) -> Metric:
    return replace(metric(name, rows, text, "summary"), lines=(("_sum", ""), ("_count", "")))


def histogram(name: str, rows: Rows, text: str, exported: _Buckets) -> Metric:
    buckets = [("_bucket", f'le="{bound}"') for _, bound in (*exported, (0, "+Inf"))]
    return replace(metric(name, rows, text, "histogram"), lines=(*buckets, ("_sum", ""), ("_count", "")))


def _buckets(counts: Sequence[int], exported: _Buckets, total: float | str) -> Row:
    sums = list(accumulate(counts))
    return (*[sums[index] for index, _ in exported], sums[-1], total, sums[-1])


def seconds(name: str, start: int, total: int, text: str, exported: _Buckets = _SECONDS) -> Metric:
    """Returns a histogram of seconds.

    start, total: positions of its first bucket, and of the sum of seconds.
    """
    bins = at.OVERHEAD_BINS if exported is OVERHEAD else at.SECONDS_BINS

    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, series in scrape.models.items():
            yield (key, *_buckets(series.ints[start : start + bins], exported, f"{series.sums[total]:.9g}"))

    return histogram(name, rows, text, exported)


def _token_rows(start: int, total: int, *names: str) -> Rows:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, series in scrape.models.items():
            yield (key, *names, *_buckets(series.ints[start : start + at.TOKEN_BINS], TOKENS, series.ints[total]))

    return rows


def input_tokens(name: str, text: str) -> Metric:
    return histogram(name, _token_rows(at.INPUT_SIZE, at.PROMPT_TOKENS), text, TOKENS)


def output_tokens(name: str, text: str) -> Metric:
    return histogram(name, _token_rows(at.OUTPUT_SIZE, at.OUTPUT_TOKENS), text, TOKENS)


def token_usage(scrape: Scrape) -> Iterator[Row]:
    yield from _token_rows(at.INPUT_SIZE, at.PROMPT_TOKENS, "input")(scrape)
    yield from _token_rows(at.OUTPUT_SIZE, at.OUTPUT_TOKENS, "output")(scrape)


def model(name: str, read: Callable[[ModelCounters], int], text: str) -> Metric:
    labels = "" if "{" in name else "{model}"
    return metric(name + labels, lambda scrape: ((key, read(series)) for key, series in scrape.models.items()), text)


def counter(name: str, position: int, text: str) -> Metric:
    return model(name, lambda series: series.ints[position], text)


def table(name: str, table: Callable[[ModelCounters], _Table], text: str) -> Metric:
    """Returns a counter of each model by the keys of a table."""

    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, series in scrape.models.items():
            for values, counted in sorted(table(series).items()):
                yield (key, *(values if isinstance(values, tuple) else ["other" if values == 0 else values]), counted)

    return metric(name, rows, text)


def shapes(scrape: Scrape) -> Iterator[Row]:
    for key, series in scrape.models.items():
        for shape, value in sorted(series.by_shape.items()):
            prompt, output = at.REQUEST_SHAPES.bucket_center(shape)
            yield key, f"{prompt:.0f}", f"{output:.0f}", value


def shadow_sums(scrape: Scrape, name: str) -> Iterator[tuple[str, str, int, Mapping[tuple[str, str], int]]]:
    """Yields the model, the original and the count of each comparison, and the model's sums."""
    for key, series in scrape.models.items():
        for (original, counted), value in sorted(series.shadow_sums.items()):
            if counted == name:
                yield key, original, value, series.shadow_sums


def shadow_errors(scrape: Scrape) -> Iterator[Row]:
    for key, original, _, sums in shadow_sums(scrape, COMPARED):
        for side in SHADOW_SIDES:
            yield key, original, side, sums.get((original, f"errors:{side}"), 0)


def shadow(name: str, value: str, unit: float, text: str) -> Metric:
    """Returns a summary over both sides of comparisons; `unit` is that of the counted integers."""

    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, original, count, sums in shadow_sums(scrape, value):
            for side in SHADOW_SIDES:
                yield key, original, side, f"{sums[original, f'{value}:{side}'] * unit:.9g}", count

    return summary(name + "{model,original,side}", rows, text)


def moved_rests(scrape: Scrape) -> Iterator[Row]:
    for key, series in scrape.models.items():
        moved = series.moved
        yield key, f"{moved.get(at.MOVED_REST, 0) / 1e6:.9g}", moved.get(at.MOVED_WITH_FORECAST, 0)


def count_rejections(series: ModelCounters, code: str) -> int:
    return sum(value for (_, kind), value in series.by_kind.items() if kind == code)


def keys_refused(scrape: Scrape) -> list[Row]:
    return [(sum(count_rejections(series, InvalidApiKey.code) for series in scrape.models.values()),)]


def process(name: str, text: str) -> Metric:
    def rows(scrape: Scrape) -> list[Row]:
        return [(scrape.process_values[name],)] if name in scrape.process_values else []

    return metric(name, rows, text)


def keyed_requests(scrape: Scrape) -> Iterator[Row]:
    return _process_counts(scrape, "idempotency_", ("joined", "returned", "run"))


def keyed_reruns(scrape: Scrape) -> Iterator[Row]:
    return _process_counts(scrape, "idempotency_rerun_", _RERUN_REASONS)


def _process_counts(scrape: Scrape, prefix: str, labels: tuple[str, ...]) -> Iterator[Row]:
    for label in labels:
        yield label, scrape.process_values.get(prefix + label, 0)


def tenant(name: str, text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterable[Row]:
        return ((tenant, f"{value:.15g}") for tenant, value in scrape.tenant_values.get(name, ()))

    return metric(name + "{tenant}", rows, text)


def adapter(name: str, position: int, text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterable[Row]:
        return ((*key, counts[position]) for key, counts in scrape.adapters.rows())

    return metric(name + "{model,adapter}", rows, text)


def adapter_loads(scrape: Scrape) -> Iterator[Row]:
    for key, counts in scrape.adapters.rows():
        yield (*key, f"{counts[metric_series.LOAD_MICROSECONDS] / 1e6:.9g}", counts[metric_series.LOADS])


def objective(name: str, ttft: int, itl: int, both: int, text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, series in scrape.models.items():
            for objective, position in (("all", both), ("itl", itl), ("ttft", ttft)):
                yield key, objective, series.ints[position]

    return metric(name + "{model,objective}", rows, text)


def load(name: str, read: Callable[[LoadView], int], text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for key in scrape.fleet.models:
            ids = (instance.id for instance in scrape.fleet.instances.get(key, ()))
            yield key, sum(read(scrape.loads[instance_id]) for instance_id in ids if instance_id in scrape.loads)

    return metric(name, rows, text)


def states(scrape: Scrape) -> Iterator[Row]:
    for key in scrape.fleet.models:
        instances = scrape.fleet.instances.get(key, ())
        for state in InstanceState:
            yield key, state, sum(instance.state is state for instance in instances)


def instance(name: str, position: int, text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, instance_id, counters in scrape.instance_counters():
            yield key, instance_id, counters.ints[position]

    return metric(name + "{model,instance}", rows, text)


def instance_summary(name: str, count: int, total: int, text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, instance_id, counters in scrape.instance_counters():
            yield key, instance_id, f"{counters.sums[total]:.9g}", counters.ints[count]

    return summary(name + "{model,instance}", rows, text)


def instance_objective(name: str, ttft: int, itl: int, text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, instance_id, counters in scrape.instance_counters():
            for objective, position in (("itl", itl), ("ttft", ttft)):
                yield key, instance_id, objective, counters.ints[position]

    return metric(name + "{model,instance,objective}", rows, text)


def instance_load(name: str, read: Callable[[LoadView], float], text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, instance in scrape.instances():
            load = scrape.loads.get(instance.id)
            if load is not None:
                yield key, instance.id, f"{read(load):.9g}"

    return metric(name + "{model,instance}", rows, text)


def ejection_seconds(scrape: Scrape) -> Iterator[Row]:
    for key, instance in scrape.instances():
        seconds = scrape.ejection_seconds.get(instance.id)
        if seconds is not None:
            yield key, instance.id, f"{seconds:.9g}"


def engine(name: str, text: str) -> Metric:
    """Returns a metric of the engines' signal with this name."""

    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, instance in scrape.instances():
            value = getattr(instance.signals, name, None)
            if value is not None:
                yield key, instance.id, instance.pool, f"{value:.15g}"

    return metric(f"engine_{name}{{model,instance,pool}}", rows, text)


def signals_age(scrape: Scrape) -> Iterator[Row]:
    for key, instance in scrape.instances():
        if instance.received_at is not None:
            yield key, instance.id, instance.pool, f"{max(0.0, scrape.now - instance.received_at):.3f}"


def gateway(name: str, read: Callable[[Scrape], float], text: str) -> Metric:
    return metric(name, lambda scrape: [(f"{read(scrape):.15g}",)], text)


def index(name: str, read: Callable[[InstanceIndexStatus], float | None], text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for key, model in scrape.index_status.items():
            for instance_id, status in model.instances.items():
                value = read(status)
                if value is not None:
                    yield key, instance_id, f"{value:.9g}"

    return metric(name + "{model,instance}", rows, text)


def model_index(name: str, read: Callable[[ModelIndexStatus], int], text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterable[Row]:
        return ((key, read(status)) for key, status in scrape.index_status.items())

    return metric(name + "{model}", rows, text)


def index_states(scrape: Scrape) -> Iterator[Row]:
    for key, model in scrape.index_status.items():
        for state in IndexState:
            yield key, state, sum(status.state is state for status in model.instances.values())


def loop_lag(scrape: Scrape) -> Iterator[Row]:
    for share in (0.5, 0.99, 1.0):
        value = None if scrape.lag is None else scrape.lag.quantile(share)
        if value is not None:
            yield f"{share:g}", f"{value:.6g}"


def errors_by_status(series: ModelCounters) -> Mapping[int, int]:
    return {status: value for status, value in series.by_status.items() if status >= 400}


def _pools(scrape: Scrape) -> dict[tuple[str, str], list[Instance]]:
    pools: dict[tuple[str, str], list[Instance]] = {}
    for _, instance in scrape.instances():
        pools.setdefault((f"{instance.model}-{instance.pool}", instance.namespace), []).append(instance)
    return pools


def pool_mean(name: str, read: Callable[[EngineSignals], float | None], text: str) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for pool, instances in _pools(scrape).items():
            reported = [read(instance.signals) for instance in instances if instance.signals is not None]
            values = [value for value in reported if value is not None]
            if values:
                yield (*pool, f"{sum(values) / len(values):.9g}")

    return metric(name + "{name,namespace}", rows, text)


def pool_ready(scrape: Scrape) -> Iterator[Row]:
    for pool, instances in _pools(scrape).items():
        yield (*pool, sum(instance.state is InstanceState.READY for instance in instances))


def pool_queues(scrape: Scrape) -> Iterator[Row]:
    for pool, instances in _pools(scrape).items():
        for instance in instances:
            if instance.signals is not None and instance.signals.waiting is not None:
                yield (*pool, instance.id, f"{instance.signals.waiting:.9g}")
