"""The alert rules: Prometheus accepts them, each fires only on its own fault, and each links to a
runbook.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead_gateway.telemetry.metrics import METRICS
from fairlead_testing.kube.helm import CHART_FOLDER, HelmError, render_chart
from fairlead_testing.prometheus import AlertRules, expression_names, expressions, parse_scrape
from fairlead_testing.yaml_documents import load_document

ROOT = CHART_FOLDER.parents[1]
CASES: dict[str, dict[str, Any]] = load_document((Path(__file__).parent / "alerts.yaml").read_text())
HEALTHY: dict[str, str] = CASES.pop("healthy")
TARGET = {"namespace", "pod", "job", "service", "endpoint", "container"}
"""Labels that a scrape by a ServiceMonitor adds; our own labels win."""
METRIC_PREFIXES = ("fairlead_gateway_", "fairlead_operator_", "fairlead_indexer_", "fairlead_autoscaler_")
Groups = Callable[..., list[dict[str, Any]]]


def series(case: dict[str, str]) -> dict[str, str]:
    """Returns the series of a healthy installation with the changes of a case."""
    overrides = dict(case)
    gone = overrides.pop("gone", None)
    kept = {key: values for key, values in HEALTHY.items() if gone is None or not key.startswith(gone)}
    return {key.replace("{", '{namespace="fairlead",'): values for key, values in (kept | overrides).items()}


def reading_alerts(case: dict[str, str], alerts: dict[str, dict[str, Any]]) -> set[str]:
    """Returns the alerts whose expressions read a metric that a case changes."""
    gone = case.get("gone")
    keys = [key for key in HEALTHY if gone is not None and key.startswith(gone)] + [
        key for key in case if key != "gone"
    ]
    changed = {key.partition("{")[0].removesuffix("_bucket") for key in keys}
    read = {name: {metric for metric, _ in expression_names(rule["expr"]).metrics} for name, rule in alerts.items()}
    return {name for name, metrics in read.items() if changed & {metric.removesuffix("_bucket") for metric in metrics}}


def merged_cases(alerts: dict[str, dict[str, Any]]) -> dict[str, tuple[dict[str, str], float, list[str]]]:
    """Returns the cases, several in one where no alert reads what two of them change.

    Each alert then sees what it would see in the one case, or a healthy installation.
    """
    groups: list[tuple[set[str], list[str], dict[str, str], list[str]]] = []
    for name, case in CASES.items():
        for kind, expected in (("fires", [name]), ("silent", [])):
            readers = reading_alerts(case[kind], alerts)
            assert name in readers, f"{name} does not read what its case {kind!r} changes"
            for group in groups:
                if not group[0] & readers and not ("gone" in group[2] and "gone" in case[kind]):
                    break
            else:
                group = (set(), [], {}, [])
                groups.append(group)
            group[0].update(readers)
            group[1].append(f"{name} {kind}")
            group[2].update(case[kind])
            group[3].extend(expected)
    return {", ".join(names): (series(changes), 60, expected) for _, names, changes, expected in groups}


def test_prometheus_accepts_the_rules(rules: AlertRules) -> None:
    assert f"{len(rules.alerts)} rules found" in rules.check()


def test_alert_fires_only_on_its_own_fault(rules: AlertRules) -> None:
    assert CASES.keys() == rules.alerts.keys()
    rules.expect_firing({"healthy": (series({}), 60, [])} | merged_cases(rules.alerts))


def test_unexpected_alert_is_reported(rules: AlertRules) -> None:
    case = series(CASES["FairleadRedisAway"]["fires"])
    with pytest.raises(AssertionError, match="FairleadRedisAway"):
        rules.expect_firing({"wrong": (case, 60, [])})


def test_expressions_use_only_exported_metrics(groups: Groups) -> None:
    """Other tests compare the metrics of operator, indexer and autoscaler with scrapes of real
    processes.
    """
    known = {family.name: set(family.labels) for family in METRICS}
    for alert, expression in expressions(groups()):
        names = expression_names(expression)
        own = set()
        for metric, labels in names.metrics:
            assert metric.startswith(METRIC_PREFIXES), alert
            assert "namespace" in labels, f"{alert}: {metric} of every installation"
            if metric.startswith("fairlead_gateway_"):
                assert labels <= known[metric] | TARGET, f"{alert}: {metric}"
                own |= known[metric]
        if own:
            assert names.grouped <= own | TARGET, alert


def test_alert_has_severity_runbook_and_valid_labels(rules: AlertRules) -> None:
    for name, rule in rules.alerts.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        runbook = rule["annotations"]["runbook"]
        assert re.findall(r"^(\w+): ", runbook, re.MULTILINE) == ["Means", "Look", "Do"], name
        assert "](" not in runbook, name
        assert "runbook_url" not in rule["annotations"], "no address is registered"
        names = expression_names(rule["expr"])
        kept = names.grouped or {"namespace"}
        for words in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", words)) <= kept, name


def test_every_alert_has_a_runbook_and_no_runbook_is_extra() -> None:
    page = (ROOT / "docs" / "troubleshooting" / "alerts.md").read_text()
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert headings == list(CASES), "in the order of tests/charts/alerts.yaml"
    for name in headings:
        text = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
        for part in ("**Means**", "**Look**", "**Do**"):
            assert part in text, f"{name}: {part}"


def test_every_checked_fault_names_its_alert_or_none() -> None:
    checks = (ROOT / "docs" / "reference" / "checks.md").read_text().partition("| fault |")[2].partition("\n## ")[0]
    page = (ROOT / "docs" / "troubleshooting" / "alerts.md").read_text().partition("| fault |")[2].partition("\n## ")[0]
    row = re.compile(r"^\| ([a-z-]+) \| (.*?) \|", re.MULTILINE)
    alerts = dict(row.findall(page))
    assert alerts.keys() == dict(row.findall(checks)).keys()
    for text in alerts.values():
        assert text.startswith("none: ") or set(re.findall(r"\[(\w+)\]", text)) & CASES.keys()


def test_alerts_can_be_disabled_labelled_and_redirected(groups: Groups, program: Path) -> None:
    given = ("--set=alerts.without={FairleadPoison}", "--set=alerts.alertLabels.team=serving")
    by_alert = {
        rule["alert"]: rule
        for group in groups(*given, "--set=alerts.runbooks=https://example.com/books")
        for rule in group["rules"]
    }
    assert CASES.keys() - by_alert.keys() == {"FairleadPoison"}
    rule = by_alert["FairleadRedisAway"]
    assert rule["labels"] == {"severity": "warning", "team": "serving"}
    assert rule["annotations"]["runbook_url"] == "https://example.com/books#fairleadredisaway"
    with pytest.raises(HelmError, match=r"alerts\.without: there is no alert FairleadPoisen"):
        render_chart(program, "--set=alerts.enabled=true", "--set=alerts.without={FairleadPoisen}")


def test_each_installation_watches_itself(program: Path) -> None:
    manifests = render_chart(program, "--set=alerts.enabled=true", "--namespace=other")
    (rule,) = (manifest for manifest in manifests if manifest["kind"] == "PrometheusRule")
    assert rule["metadata"]["namespace"] == "other"
    for _, expression in expressions(rule["spec"]["groups"]):
        assert 'namespace="other"' in expression
        assert "NAMESPACE" not in expression
    assert "NAMESPACE" not in str(rule)


def test_no_rules_without_the_prometheus_operator(program: Path) -> None:
    manifests = render_chart(program, "--set=alerts.enabled=true", served=())
    assert not any(manifest["kind"] == "PrometheusRule" for manifest in manifests)


@pytest.mark.parametrize(
    ("expression", "metrics", "grouped"),
    [
        ('sum by (a) (rate(x_total{b="c}",d!~"e"}[5m])) / y > 0.5e3', {"x_total": {"b", "d"}, "y": set()}, {"a"}),
        ("max without(le) (x) and on (a, b) group_left y offset 5m", {"x": set(), "y": set()}, {"le", "a", "b"}),
        ("histogram_quantile(0.9, sum by (le) (rate(x_bucket[1m])))", {"x_bucket": set()}, {"le"}),
        ("count(up == bool 1) or vector(1)", {"up": set()}, set()),
    ],
)
def test_names_in_an_expression_are_found(expression: str, metrics: dict[str, set[str]], grouped: set[str]) -> None:
    names = expression_names(expression)
    assert {name: set(labels) for name, labels in names.metrics} == metrics
    assert names.grouped == grouped


def test_scrape_labels_take_precedence_over_target_labels() -> None:
    samples = parse_scrape('# TYPE a gauge\na{instance="e-1"} 2\n', instance="10.0.0.1:8081", pod="g-1")
    assert samples == {("a", (("instance", "e-1"), ("pod", "g-1"))): 2.0}
