"""A parser of Prometheus text, as gateways and operators write it. It ignores invalid lines."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One line of the page."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """All samples of a page by name. An absent sample is None: missing is not zero."""

    samples: Mapping[str, Sequence[MetricSample]] = field(default_factory=dict)

    def matching(self, name: str, **labels: str) -> Iterator[MetricSample]:
        """Yields the samples with at least these labels."""
        for sample in self.samples.get(name, ()):
            if labels.items() <= sample.labels.items():
                yield sample

    def value(self, name: str, **labels: str) -> float | None:
        """Returns the first matching value; None without any."""
        return next((sample.value for sample in self.matching(name, **labels)), None)

    def total(self, name: str, **labels: str) -> float | None:
        """Returns the sum of the matching values; None without any."""
        values = [sample.value for sample in self.matching(name, **labels)]
        return sum(values) if values else None


def parse_metrics(text: str) -> MetricsPage:
    """Returns the samples of a page, without histogram buckets, which no check uses."""
    samples: dict[str, list[MetricSample]] = {}
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        match = _LINE.match(line)
        if match is None or match[1].endswith("_bucket"):
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = {name: _ESCAPED.sub(_plain, text) for name, text in _LABEL.findall(match[2] or "")}
        samples.setdefault(match[1], []).append(MetricSample(match[1], labels, value))
    return MetricsPage(samples)


def _plain(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
