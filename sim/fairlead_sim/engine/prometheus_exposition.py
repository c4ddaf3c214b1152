"""Prometheus metrics as plain numbers with cached text around them.

Why: only the numbers of a page change. Observing costs an index and an addition, rendering a join.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

Labels = Mapping[str, str]


def series_name(name: str, labels: Labels) -> str:
    """Returns ``name{a="1",b="2"}`` with sorted labels, as the Prometheus client writes it."""
    if not labels:
        return name
    pairs = ",".join(f'{label}="{_escaped(labels[label])}"' for label in sorted(labels))
    return f"{name}{{{pairs}}}"


class MetricValue:
    """One series of a counter or a gauge; set ``value`` or add to it."""

    __slots__ = ("_prefix", "labels", "value")

    def __init__(self, name: str, labels: Labels, value: float = 0.0) -> None:
        self.labels = labels
        self.value = value
        self._prefix = series_name(name, labels) + " "

    def lines(self) -> Iterable[str]:
        return (self._prefix + format_number(self.value),)


class HistogramSeries:
    """One series of a histogram; ``bounds`` has no infinity."""

    __slots__ = ("_bounds", "_counts", "_prefixes", "_total", "labels")

    def __init__(self, name: str, labels: Labels, bounds: Sequence[float]) -> None:
        self.labels = labels
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        les = [*(format_number(bound) for bound in bounds), "+Inf"]
        self._prefixes = [series_name(f"{name}_bucket", {**labels, "le": le}) + " " for le in les]
        self._prefixes += [series_name(f"{name}_count", labels) + " ", series_name(f"{name}_sum", labels) + " "]

    def observe(self, value: float, times: int = 1) -> None:
        """Counts ``value``; ``times`` counts several equal ones."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def lines(self) -> Iterable[str]:
        """Returns the lines of the cumulative buckets, the count and the sum."""
        lines, below = [], 0
        for before, count in zip(self._prefixes, self._counts, strict=False):
            below += count
            lines.append(f"{before}{below}.0")
        lines.append(f"{self._prefixes[-2]}{below}.0")
        lines.append(self._prefixes[-1] + format_number(self._total))
        return lines


class SummarySeries:
    """One series of a summary without quantiles."""

    __slots__ = ("_count", "_prefixes", "_total", "labels")

    def __init__(self, name: str, labels: Labels) -> None:
        self.labels = labels
        self._count = 0
        self._total = 0.0
        self._prefixes = (series_name(f"{name}_count", labels) + " ", series_name(f"{name}_sum", labels) + " ")

    def observe(self, value: float) -> None:
        self._count += 1
        self._total += value

    def lines(self) -> Iterable[str]:
        return (f"{self._prefixes[0]}{self._count}.0", self._prefixes[1] + format_number(self._total))


class MetricFamily:
    """All series of one metric.

    created: Unix time shown by ``_created`` gauges; None: there are none.
    """

    def __init__(self, name: str, kind: str, help_text: str, *, created: float | None = None) -> None:
        self.name = name
        self._header = f"# HELP {name} {help_text}\n# TYPE {name} {kind}"
        self._members: list[MetricValue | HistogramSeries | SummarySeries] = []
        self._created = created
        base = name.removesuffix("_total") if kind == "counter" else name
        self._created_name = f"{base}_created"
        self._created_lines = [f"# HELP {self._created_name} {help_text}\n# TYPE {self._created_name} gauge"]

    def value(self, labels: Labels, value: float = 0.0) -> MetricValue:
        """Adds and returns a series of a counter or a gauge."""
        member = MetricValue(self.name, labels, value)
        self._add(member)
        return member

    def histogram(self, labels: Labels, bounds: Sequence[float]) -> HistogramSeries:
        """Adds and returns a series of a histogram."""
        member = HistogramSeries(self.name, labels, bounds)
        self._add(member)
        return member

    def summary(self, labels: Labels) -> SummarySeries:
        """Adds and returns a series of a summary."""
        member = SummarySeries(self.name, labels)
        self._add(member)
        return member

    def lines(self) -> Iterable[str]:
        """Returns the lines of the family on the page."""
        lines = [self._header]
        for member in self._members:
            lines.extend(member.lines())
        if self._created is not None and self._members:
            lines.extend(self._created_lines)
        return lines

    def _add(self, member: MetricValue | HistogramSeries | SummarySeries) -> None:
        self._members.append(member)
        if self._created is not None:
            self._created_lines.append(
                f"{series_name(self._created_name, member.labels)} {format_number(self._created)}"
            )


def format_number(value: float) -> str:
    """Returns a number as Prometheus writes it."""
    return "0.0" if value == 0 else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
