"""The Grafana dashboards of the chart, generated from short descriptions of panels.

One for each audience: models (their owners), tenants (who pays), engines and caches (those who run
them), and the control plane. Every expression uses metrics that exist; tests/charts compares them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WHERE = 'namespace="$namespace",model=~"$model"'
_HERE = 'namespace="$namespace"'
_TENANTS = 'namespace="$namespace",tenant=~"$tenant"'
_G, _O, _I, _A = (f"fairlead_{part}_" for part in ("gateway", "operator", "indexer", "autoscaler"))


@dataclass(frozen=True)
class Panel:
    """One panel. ``expressions``: with their legends. ``unit`` as in Grafana; ``kind``: timeseries,
    stat or table.
    """

    title: str
    expressions: Sequence[tuple[str, str]]
    unit: str = "short"
    description: str = ""
    kind: str = "timeseries"
    width: int = 8


Rows: TypeAlias = Sequence[tuple[str, Sequence[Panel]]]
"""Titled rows of panels."""


@dataclass(frozen=True)
class Dashboard:
    """A dashboard; ``name`` is its file's. ``selected``: the label of its selector, if any."""

    name: str
    title: str
    rows: Rows
    selected: str | None = "model"


def _rate(metric: str, by: str, more: str = "", where: str = _WHERE) -> str:
    inside = f"{where},{more}" if more else where
    return f"sum by ({by}) (rate({metric}{{{inside}}}[$__rate_interval]))"


def _ratio(of: str, whole: str, by: str = "model", more: str = "") -> str:
    return f"{_rate(of, by, more)}\n  / {_rate(whole, by, more)}"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share:g}, {_rate(f'{metric}_bucket', 'model, le')})"


def _quantiles(title: str, metric: str, unit: str = "s", says: str = "") -> Panel:
    lines = [(_quantile(share, _G + metric), f"{{{{model}}}} p{share * 100:g}") for share in (0.5, 0.9, 0.99)]
    return Panel(title, lines, unit, says)


def _sum(metric: str, by: str, more: str = "", where: str = _WHERE, of: str = "sum") -> str:
    inside = f"{where},{more}" if more else where
    return f"{of} by ({by}) ({metric}{{{inside}}})"


def models() -> Dashboard:
    """Returns the dashboard of models."""
    failing = _ratio(f"{_G}errors_total", f"{_G}requests_total")
    requests = (
        Panel("Requests by status", [(_rate(f"{_G}requests_total", "status"), "{{status}}")], "reqps"),
        Panel("Error rate", [(failing, "{{model}}")], "percentunit", "Errors that the client did not cause."),
        Panel(
            "Requests refused by the gateway",
            [(_rate(f"{_G}rejected_total", "model, kind"), "{{model}} {{kind}}")],
            "reqps",
        ),
    )
    latency = (
        _quantiles("Time to first token", "ttft_seconds"),
        _quantiles("Inter-token latency", "itl_seconds"),
        _quantiles("Request duration", "duration_seconds"),
    )
    within = _ratio(f"{_G}within_objective_total", f"{_G}judged_total", "model, objective")
    flight = [
        (_sum(f"{_G}in_flight", "model"), "{{model}}"),
        (_sum(f"{_G}queue", "model"), "{{model}} before the first token"),
    ]
    states = _sum(f"{_G}instances", "model, state", of="max")
    load = (
        Panel("Share within the latency targets", [(within, "{{model}} {{objective}}")], "percentunit"),
        Panel("Requests in flight", flight),
        Panel(
            "Instances by state",
            [(states, "{{model}} {{state}}")],
            description="The highest count of any gateway.",
        ),
    )
    tokens = [
        (_rate(f"{_G}prompt_tokens_total", "model"), "{{model}} prompt"),
        (_rate(f"{_G}output_tokens_total", "model"), "{{model}} generated"),
    ]
    cached = _ratio(f"{_G}cached_tokens_total", f"{_G}cache_reported_prompt_tokens_total")
    holds = f"max by (model, type, reason) ({_O}model_condition{{{_WHERE}}}) == 1"
    rest = (
        Panel("Tokens", tokens, "cps"),
        Panel("Share of cached prompt tokens", [(cached, "{{model}}")], "percentunit"),
        Panel("True conditions", [(holds, "{{model}} {{type}} {{reason}}")], kind="table"),
    )
    pool = "{{model}} {{pool}}"
    replicas = [
        (_sum(f"{_A}{name}_replicas", "model, pool", of="max"), f"{pool} {name}")
        for name in ("wanted", "ready", "pending")
    ]
    needs = f'max by (model, pool) ({_A}input{{{_WHERE},name="need_replicas"}})'
    held = f"max by (model, pool) ({_A}held_back{{{_WHERE}}})"
    decided = _rate(f"{_A}decisions_total", "model, pool, rule")
    scaling = (
        Panel("Instances desired, ready and pending", replicas),
        Panel("Instances that the load needs, and withheld decisions", [(needs, pool), (held, f"{pool} withheld")]),
        Panel("Decisions by rule", [(decided, f"{pool} {{{{rule}}}}")], "ops"),
    )
    rows = (
        *(("Requests", requests), ("Latency", latency), ("SLO and load", load)),
        *(("Autoscaling", scaling), ("Tokens and status", rest)),
    )
    return Dashboard("models", "Fairlead / Models", rows)


def engines() -> Dashboard:
    """Returns the dashboard of engines and their caches."""
    one = "{{model}} {{instance}}"
    load = (
        Panel("Running requests", [(_sum(f"{_G}engine_running", "model, instance", of="max"), one)]),
        Panel("Requests queued in the engine", [(_sum(f"{_G}engine_waiting", "model, instance", of="max"), one)]),
        Panel("KV cache in use", [(_sum(f"{_G}engine_kv_usage", "model, instance", of="max"), one)], "percentunit"),
    )
    sent = (
        Panel("Requests in flight, counted by gateways", [(_sum(f"{_G}instance_in_flight", "model, instance"), one)]),
        Panel("Estimated backlog", [(_sum(f"{_G}instance_backlog_seconds", "model, instance"), one)], "s"),
        Panel("Generated tokens", [(_rate(f"{_G}instance_output_tokens_total", "model, instance"), one)], "cps"),
    )
    hits = f"sum by (model, instance) (rate({_G}engine_prefix_hits_total{{{_WHERE}}}[$__rate_interval]))"
    queries = f"sum by (model, instance) (rate({_G}engine_prefix_queries_total{{{_WHERE}}}[$__rate_interval]))"
    caches = (
        Panel("Prefix hit rate", [(f"{hits}\n  / {queries}", one)], "percentunit"),
        Panel(
            "Preemptions for lack of KV cache",
            [(_rate(f"{_G}engine_preemptions_total", "model, instance"), one)],
            "ops",
        ),
        Panel(
            "Prediction error of cached tokens",
            [
                (
                    _ratio(f"{_G}cache_prediction_error_tokens_total", f"{_G}cache_reported_prompt_tokens_total"),
                    "{{model}}",
                )
            ],
            "percentunit",
            "Difference between the cached tokens that the router predicted and those that engines reported.",
        ),
    )
    faults = (
        Panel("Failed attempts", [(_rate(f"{_G}instance_errors_total", "model, instance"), one)], "reqps"),
        Panel("Ejections", [(_rate(f"{_G}ejections_total", "model, reason"), "{{model}} {{reason}}")], "ops"),
        Panel(
            "Age of engine metrics",
            [(_sum(f"{_G}engine_signals_age_seconds", "model, instance", of="max"), one)],
            "s",
        ),
    )
    routing = (
        Panel("Decisions by rule", [(_rate(f"{_G}decisions_total", "model, rule"), "{{model}} {{rule}}")], "ops"),
        Panel(
            "Hand-offs from prefill to decode",
            [(_rate(f"{_G}handoffs_total", "model, outcome, reason"), "{{model}} {{outcome}} {{reason}}")],
            "ops",
        ),
        Panel("Retries", [(_rate(f"{_G}retries_total", "model, reason"), "{{model}} {{reason}}")], "ops"),
    )
    rows = (
        ("Load", load),
        ("Load sent by gateways", sent),
        ("Caches", caches),
        ("Faults", faults),
        ("Routing", routing),
    )
    return Dashboard("engines", "Fairlead / Engines", rows)


def control_plane() -> Dashboard:
    """Returns the dashboard of operator, gateways and Redis."""
    return Dashboard(
        "control-plane",
        "Fairlead / Control plane",
        (*_operators(), *_autoscalers(), *_gateways(), *_indexers()),
        selected=None,
    )


def tenants() -> Dashboard:
    """Returns the dashboard of tenants: their use, cost, budgets and refused requests."""

    def counted(metric: str) -> str:
        return _rate(f"{_G}tenant_{metric}_total", "tenant", where=_TENANTS)

    needs = "Absent without a ledger of use, and without a token that may read tenants (serviceMonitors.tenants)."
    cached = f"{counted('cached_tokens')}\n  / {counted('input_tokens')}"
    use = (
        Panel("Requests", [(counted("requests"), "{{tenant}}")], "reqps", needs),
        Panel(
            "Tokens",
            [(counted("input_tokens"), "{{tenant}} prompt"), (counted("output_tokens"), "{{tenant}} generated")],
            "cps",
        ),
        Panel("Share of cached prompt tokens", [(cached, "{{tenant}}")], "percentunit"),
    )
    cost = (
        Panel(
            "Cost",
            [(f"3600 * {counted('cost_usd')}", "{{tenant}}")],
            "currencyUSD",
            "US dollars an hour, by the prices of the models.",
        ),
        Panel(
            "Saved by cached tokens",
            [(f"3600 * {counted('saved_usd')}", "{{tenant}}")],
            "currencyUSD",
            "US dollars an hour.",
        ),
        Panel(
            "Engines in use",
            [(counted("engine_seconds"), "{{tenant}}")],
            description="Seconds of engines used per second.",
        ),
    )
    left = f"clamp_min(1 - {_sum(f'{_G}budget_used_ratio', 'tenant', where=_TENANTS, of='max')}, 0)"
    over_limits = _rate(f"{_G}rejected_total", "kind", 'status="429"', where=_HERE)
    keys_refused = _rate(f"{_G}keys_refused_total", "namespace", where=_HERE)
    limits = (
        Panel("Share of the budget left", [(left, "{{tenant}}")], "percentunit", "Over all gateways."),
        Panel(
            "Requests over a limit (429), by reason",
            [(over_limits, "{{kind}}")],
            "reqps",
            "Of all tenants: insufficient_quota is a used budget, rate_limit_exceeded a used limit.",
        ),
        Panel("Requests refused for their API key", [(keys_refused, "all tenants")], "reqps"),
    )
    rows = (("Use", use), ("Cost", cost), ("Budgets and limits", limits))
    return Dashboard("tenants", "Fairlead / Tenants", rows, selected="tenant")


def _operators() -> Rows:

    def operator(metric: str, legend: str = "{{pod}}", by: str = "pod") -> tuple[str, str]:
        return _sum(_O + metric, by, where=_HERE, of="max"), legend

    def worked(metric: str, legend: str) -> tuple[str, str]:
        return _rate(f"{_O}{metric}_total", "namespace", where=_HERE), legend

    work = (
        worked("reconciles", "reconciled"),
        worked("reconcile_failures", "failed"),
        worked("applied", "applied"),
        worked("pruned", "deleted"),
        worked("statuses", "status writes"),
    )
    waiting = (
        operator("queue_waiting", "waiting", "namespace"),
        operator("queue_running", "in progress", "namespace"),
        operator("queue_later", "delayed", "namespace"),
    )
    working = (
        Panel("Leader", [operator("leading")], description="1 for the replica that leads."),
        Panel("Reconciliations and writes", work, "ops"),
        Panel("Work queue", waiting),
    )
    hearing = (
        Panel("Age of the last watch event", [operator("watch_age_seconds", "{{kind}}", "kind")], "s"),
        Panel("Models", [operator("models", "models", "namespace")]),
        Panel("Dropped Kubernetes events", [worked("events_dropped", "events")], "ops"),
    )
    return (("Operator", working), ("Watches", hearing))


def _autoscalers() -> Rows:
    def by_pod(metric: str, legend: str = "{{pod}}") -> tuple[str, str]:
        return _sum(_A + metric, "pod", where=_HERE, of="max"), legend

    def by_model(metric: str, legend: str, of: str = "max") -> tuple[str, str]:
        return _sum(_A + metric, "model", where=_HERE, of=of), legend

    def counted(metric: str, legend: str, by: str = "pod") -> tuple[str, str]:
        return _rate(f"{_A}{metric}_total", by, where=_HERE), legend

    process = (
        Panel("Autoscaler leader", [by_pod("leads")], description="1 for the replica that leads and writes."),
        Panel("Duration of a tick", [by_pod("tick_seconds")], "s"),
        Panel("Ticks", [counted("ticks", "{{pod}}"), counted("ticks_skipped", "{{pod}} skipped")], "ops"),
    )
    gateways = (by_pod("gateways", "{{pod}} known"), by_pod("gateways_missing", "{{pod}} missing"))
    decisions = (
        Panel("Age of the last scaling decision", [by_model("decision_age_seconds", "{{model}}")], "s"),
        Panel("Gateways that the autoscaler reads", gateways),
        Panel("Scaling is frozen", [by_pod("frozen")], description="1 while no number is written."),
    )
    numbers = (
        Panel(
            "Replicas decided and ready",
            [
                by_model("wanted_replicas", "{{model}} decided", "sum"),
                by_model("ready_replicas", "{{model}} ready", "sum"),
            ],
        ),
        Panel(
            "Written replica counts",
            [
                counted("writes", "{{model}} {{direction}}", "model, direction"),
                counted("write_errors", "{{model}} failed", "model"),
            ],
            "ops",
        ),
        Panel(
            "Cost of the planned replicas",
            [by_model("usd_per_hour", "{{model}}")],
            "currencyUSD",
            "US dollars an hour.",
        ),
    )
    return (("Autoscaler", process), ("Scaling decisions", decisions), ("Scaled replicas", numbers))


def _indexers() -> Rows:
    def indexer(metric: str, legend: str, of: str = "sum") -> tuple[str, str]:
        return _sum(_I + metric, "model", where=_HERE, of=of), legend

    engines = (
        indexer("instances", "{{model}}"),
        indexer("connected", "{{model}} connected"),
        indexer("incomplete", "{{model}} incomplete"),
    )
    index = (
        Panel("Indexed engines", engines, description="Reported by the indexer that leads for the model."),
        Panel("Indexed blocks", [indexer("blocks", "{{model}}")]),
        Panel("Age of the last KV event", [indexer("lag_seconds", "{{model}}", of="max")], "s"),
    )
    return (("Index", index),)


def _gateways() -> Rows:
    def gateway(metric: str, legend: str = "{{pod}}", more: str = "") -> tuple[str, str]:
        return _sum(_G + metric, "pod", more, where=_HERE, of="max"), legend

    def counted(metric: str, legend: str = "{{pod}}") -> tuple[str, str]:
        return _rate(f"{_G}{metric}_total", "pod", where=_HERE), legend

    added = f"histogram_quantile(0.99, {_rate(f'{_G}overhead_seconds_bucket', 'pod, le', where=_HERE)})"
    own = (
        Panel("Added latency, p99", [(added, "{{pod}}")], "s"),
        Panel("Event loop lag, p99", [gateway("loop_lag_seconds", more='quantile="0.99"')], "s"),
        Panel("Age of the fleet", [gateway("fleet_age_seconds")], "s"),
    )
    processes = (
        Panel("Workers", [gateway("workers"), counted("worker_deaths", "{{pod}} deaths")]),
        Panel("Uptime", [gateway("uptime_seconds")], "s"),
        Panel("Requests refused for their API key", [counted("keys_refused")], "reqps"),
    )
    published = (
        counted("redis_published", "{{pod}} published"),
        counted("redis_dropped", "{{pod}} dropped"),
        counted("redis_refused", "{{pod}} refused"),
    )
    lost = (counted("access_log_dropped", "{{pod}} lines"), counted("spans_dropped", "{{pod}} spans"))
    sharing = (
        Panel("Redis connection", [gateway("redis_connected")]),
        Panel("Published decisions", published, "ops"),
        Panel("Dropped log lines and spans", lost, "ops"),
    )
    return (("Gateways", own), ("Gateway processes", processes), ("Redis and telemetry", sharing))


def dashboards() -> dict[str, str]:
    """Returns file name → JSON."""
    return {
        f"{dashboard.name}.json": json.dumps(_grafana(dashboard), indent=1, ensure_ascii=False) + "\n"
        for dashboard in (models(), tenants(), engines(), control_plane())
    }


def _grafana(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": f"fairlead-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["fairlead"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables(dashboard.selected))},
        "links": [{"type": "dashboards", "tags": ["fairlead"], "title": "Fairlead", "asDropdown": True}],
        "panels": list(_panels(dashboard)),
    }


def _variables(selected: str | None) -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}
    asked = {"namespace": f"label_values({_G}uptime_seconds, namespace)"}
    if selected is not None:
        metric = {"model": "instances", "tenant": "tenant_requests_total"}[selected]
        asked[selected] = f"label_values({_G}{metric}{{{_HERE}}}, {selected})"
    for name, query in asked.items():
        several = name == selected
        yield {
            "name": name,
            "type": "query",
            "label": name.capitalize(),
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": several,
            "includeAll": several,
            **({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if several else {}),
        }


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in dashboard.rows:
        number += 1
        yield {"id": number, "type": "row", "title": title, "gridPos": _at(0, top, 24, 1), "panels": []}
        top, left = top + 1, 0
        for panel in panels:
            number += 1
            yield _panel(panel, number, _at(left, top, panel.width, 8))
            left += panel.width
        top += 8


def _at(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": expression,
            "legendFormat": legend,
            **({"format": "table", "instant": True} if table else {}),
        }
        for index, (expression, legend) in enumerate(panel.expressions)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {}
        if table
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }
