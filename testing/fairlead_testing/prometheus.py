"""Evaluates alert rules with Prometheus' rule engine, and analyses PromQL expressions.

`promtool test rules` evaluates rules on given series; an hour takes a tenth of a second. Series are
written by a test, or come from scrapes of real processes (`SeriesRecording`). The values before and
after a fault are extended over time; counters and ages keep growing as they did between two
scrapes.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

STEP_SECONDS = 30
Labels = tuple[tuple[str, str], ...]
Scrape = Mapping[tuple[str, Labels], float]
"""Name and labels of a series → its value."""
_COUNTED = re.compile(r"_(total|bucket|sum|count)$")
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\[[^\]]*\]|[A-Za-z_:][\w:]*|[\d.]+\w*|=~|!~|!=|==|<=|>=|\S')
_WORD = re.compile(r"[A-Za-z_:][\w:]*")
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_OPERATORS = {"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"}
_AGGREGATIONS = {"sum", "min", "max", "avg", "count", "topk", "bottomk", "quantile", "group", "stddev"}


# --- what an expression asks for ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExpressionNames:
    """The names in an expression.

    metrics: name and selector labels, for each occurrence.
    grouped: labels of results.
    """

    metrics: tuple[tuple[str, frozenset[str]], ...]
    grouped: frozenset[str]


def expression_names(expression: str) -> ExpressionNames:
    """Returns the names in a PromQL expression. It does not validate it; promtool does."""
    tokens = _TOKEN.findall(expression)
    metrics: list[tuple[str, frozenset[str]]] = []
    grouped: set[str] = set()
    at = 0
    while at < len(tokens):
        token, at = tokens[at], at + 1
        follows = tokens[at] if at < len(tokens) else ""
        if token in _GROUPING and follows == "(":
            end = tokens.index(")", at)
            grouped.update(filter(_WORD.fullmatch, tokens[at:end]))
            at = end
        elif not _WORD.fullmatch(token) or token.lower() in _OPERATORS | _AGGREGATIONS | _GROUPING or follows == "(":
            continue
        elif follows == "{":
            end = tokens.index("}", at)
            inside = tokens[at + 1 : end]
            labels = (one for one, then in pairwise(inside) if then in ("=", "=~", "!=", "!~"))
            metrics.append((token, frozenset(labels)))
            at = end
        else:
            metrics.append((token, frozenset()))
    return ExpressionNames(tuple(metrics), frozenset(grouped))


# --- what fires ---------------------------------------------------------------------------------------------------------


def parse_scrape(text: str, **target: str) -> Scrape:
    """Returns the series of a scrape, with the labels that Prometheus adds for the target."""
    found: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, tuple(sorted((target | sample.labels).items()))] = float(sample.value)
    return found


class SeriesRecording:
    """Series over time, with a value every `STEP_SECONDS`. A series ends with its last scrape."""

    def __init__(self) -> None:
        self._steps = 0
        self._values: dict[tuple[str, Labels], list[str]] = {}

    def hold(self, minutes: float, *scrapes: Scrape) -> None:
        self.grow(minutes, *((scrape, scrape) for scrape in scrapes))

    def grow(self, minutes: float, *pairs: tuple[Scrape, Scrape], aging: str = "") -> None:
        """Lets counters grow for `minutes` as they did between the two scrapes of each target.

        Other series stay as in the second scrape, except the ages called `aging`, which grow with
        time if they had grown. Series in no pair are absent.
        """
        steps = round(minutes * 60 / STEP_SECONDS)
        for before, after in pairs:
            for key, value in after.items():
                told = self._values.setdefault(key, ["_"] * self._steps)
                slope = _slope(key[0], value - before.get(key, value), key[0] == aging)
                told.extend(f"{value + slope * number:.9g}" for number in range(steps))
        self._steps += steps
        for told in self._values.values():
            told.extend((["stale"] + ["_"] * steps)[: self._steps - len(told)])

    def series(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the series of these names in promtool's notation."""
        wanted = set(names)
        return {
            format_series(name, labels): " ".join(told)
            for (name, labels), told in self._values.items()
            if name.removesuffix("_bucket") in wanted or name in wanted
        }

    @property
    def minutes(self) -> float:
        return self._steps * STEP_SECONDS / 60


def _slope(name: str, difference: float, aging: bool) -> float:
    """Returns the growth of a series per step."""
    if _COUNTED.search(name):
        return max(0.0, difference)
    return float(STEP_SECONDS) if name.endswith("_uptime_seconds") or (aging and difference > 0.0) else 0.0


def format_series(name: str, labels: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f'{key}="{escape_label(value)}"' for key, value in labels)
    return f"{name}{{{inside}}}"


def escape_label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class AlertRules:
    """The alert rules of a PrometheusRule. `folder` is for promtool's files."""

    def __init__(self, promtool: Path, groups: Sequence[Mapping[str, Any]], folder: Path) -> None:
        self._promtool = promtool
        self._folder = folder
        self.alerts = {rule["alert"]: rule for group in groups for rule in group["rules"]}
        self.path = folder / "rules.yaml"
        self.path.write_text(yaml.safe_dump({"groups": list(groups)}), encoding="utf-8")

    def check(self) -> str:
        """Runs promtool's check of the rules. Raises AssertionError with its message."""
        return self._run("check", "rules", "--lint=all", "--lint-fatal", str(self.path))

    def expect_firing(
        self, cases: Mapping[str, tuple[Mapping[str, str], float, Iterable[str]]], label: str = "alertname"
    ) -> None:
        """Raises AssertionError unless exactly the expected alerts fire.

        cases: by name: series, minutes, and the expected values of `label`.
        """
        tests = [
            {
                "name": name,
                "interval": f"{STEP_SECONDS}s",
                "input_series": [{"series": key, "values": values} for key, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count by ({label}) (ALERTS{{alertstate="firing"}}) > bool 0',
                        "eval_time": f"{round(minutes * 60)}s",
                        "exp_samples": [{"labels": f'{{{label}="{one}"}}', "value": 1} for one in sorted(fired)],
                    }
                ],
            }
            for name, (series, minutes, fired) in cases.items()
        ]
        content = {"rule_files": [str(self.path)], "evaluation_interval": f"{2 * STEP_SECONDS}s", "tests": tests}
        path = self._folder / "tests.yaml"
        path.write_text(yaml.safe_dump(content, width=10_000_000), encoding="utf-8")
        self._run("test", "rules", str(path))

    def _run(self, *arguments: str) -> str:
        command = [str(self._promtool), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


def expressions(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yields alert and expression of each rule."""
    for group in groups:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
