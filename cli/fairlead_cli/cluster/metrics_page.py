"""Reading a page of Prometheus text, as gateways and operators write it: names, labels, numbers. Lines that are none are left out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One line."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """All samples of a page by name. What is not on it is None: missing is not zero."""

    samples: Mapping[str, Sequence[MetricSample]] = field(default_factory=dict)

    def matching(self, name: str, **labels: str) -> Iterator[MetricSample]:
        """Those with at least these labels."""
        for one in self.samples.get(name, ()):
            if labels.items() <= one.labels.items():
                yield one

    def value(self, name: str, **labels: str) -> float | None:
        """The first of them."""
        return next((one.value for one in self.matching(name, **labels)), None)

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None where there is none."""
        found = [one.value for one in self.matching(name, **labels)]
        return sum(found) if found else None


def parse_metrics(text: str) -> MetricsPage:
    """The page in ``text``; buckets of histograms, which nobody here asks for, are left out."""
    found: dict[str, list[MetricSample]] = {}
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
        found.setdefault(match[1], []).append(MetricSample(match[1], labels, value))
    return MetricsPage(found)


def _plain(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
