"""A model's report as a tree for a terminal and as a document; and the table of all models."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from fairlead.api.conditions import ConditionType
from fairlead.kube.resources import Manifest, metadata_of
from fairlead_cli import formatting
from fairlead_cli.advice import Advice
from fairlead_cli.cluster.object_fields import MAX_CONDITION_MESSAGE, Condition, shorten
from fairlead_cli.cluster.status.advice import revision_note
from fairlead_cli.cluster.status.engine_signals import EngineSignals
from fairlead_cli.cluster.status.model_report import (
    EventReport,
    InstanceReport,
    ModelReport,
    PoolReport,
    table_row,
    wide_cells,
)
from fairlead_cli.cluster.timestamps import format_age, parse_time

STATE_STYLES: Final = {
    "Ready": "green",
    "Routed": "green",
    "Worker": "green",
    "Starting": "yellow",
    "Draining": "cyan",
    "Sleeping": "dim",
}
_STALE_SECONDS: Final = 10.0
_MAX_MESSAGE: Final = 240
TABLE_HEADINGS: Final = ("NAMESPACE", "NAME", "CLIENT-NAME", "ENGINE", "READY", "SLO-MET", "REASON", "AGE")
WIDE_HEADINGS: Final = ("POOLS", "URI")


def render_tree(report: ModelReport, advice: Advice) -> RenderableType:
    """Returns model, conditions, pools with pods and signals, the last events, and the advice."""
    root = Tree(_head(report, advice), guide_style="dim")
    for condition in report.conditions:
        root.add(_condition(condition, report.facts.now))
    for pool in report.pools:
        branch = root.add(_pool(pool))
        for instance in pool.instances:
            branch.add(_instance(instance, report))
    if report.pods_problem:
        root.add(Text(f"pods: not to be had: {report.pods_problem}", style="magenta"))
    root.add(_signals_source(report))
    if report.events:
        events = root.add(Text("last events", style="dim"))
        for event in report.events:
            events.add(_event(event, report.facts.now))
    return Group(root, Text.assemble(("next: ", "bold"), (advice.text, "red" if advice.is_problem else "")))


def _head(report: ModelReport, advice: Advice) -> Text:
    ready = report.condition(ConditionType.READY)
    up = ready is not None and ready.get("status") == "True"
    line = Text.assemble(
        ("×", "red") if advice.is_problem else ("√", "green") if up else ("‼", "yellow"),
        (f" {report.key}", "bold cyan"),
        f"  {report.ready or formatting.UNKNOWN} ready  {report.engine}  {report.source}",
        (f"  {format_age(report.since, report.facts.now)}", "dim"),
    )
    if report.client_name and report.client_name != report.key.partition("/")[2]:
        line.append(f"  clients say {report.client_name}", "yellow")
    if note := revision_note(report):
        line.append(f"  {note}", "yellow")
    if ready is None:
        line.append("  no status yet", "yellow")
    return line


def _condition(condition: Condition, now: float) -> Text:
    good = (condition.get("status") == "True") == (condition.get("type") not in ("Stalled", "NameTaken", "Reconciling"))
    style = "green" if good else "yellow" if condition.get("type") == "Reconciling" else "red"
    return Text.assemble(
        (f"{condition.get('type')} {condition.get('status')}", style),
        f"  {condition.get('reason')}",
        (f"  {format_age(parse_time(condition.get('lastTransitionTime')), now)}", "dim"),
        f"  {shorten(str(condition.get('message', '')), MAX_CONDITION_MESSAGE)}",
    )


def _pool(pool: PoolReport) -> Text:
    numbers = f"{formatting.format_count(pool.ready)}/{formatting.format_count(pool.desired)} ready"
    if pool.instances and pool.updated is not None and pool.desired is not None and pool.updated < pool.desired:
        numbers += f", {pool.updated} of the present spec"
    return Text.assemble(("pool ", "dim"), pool.name, f"  {pool.role}  {pool.accelerator}".rstrip(), f"  {numbers}")


def _instance(instance: InstanceReport, report: ModelReport) -> Text:
    sign = (
        "√"
        if instance.state in ("Ready", "Routed", "Worker", "Sleeping")
        else "‼"
        if instance.state == "Draining" or not instance.why
        else "×"
    )
    line = Text.assemble(
        (f"{sign} {instance.name}", ""), (f"  {instance.state}", STATE_STYLES.get(instance.state, "red"))
    )
    if instance.why:
        line.append(f"  {instance.why}", "" if instance.state == "Starting" and sign == "‼" else "red")
    for signals in instance.signals:
        rank = f"rank {signals.id.rpartition('/')[2]}: " if len(instance.signals) > 1 else ""
        line.append(f"  {rank}{_signals(signals)}")
    if instance.restarts:
        line.append(f"  restarted {formatting.pluralize(instance.restarts, 'time')}", "yellow")
    if instance.node or instance.since is not None:
        line.append(f"  {format_age(instance.since, report.facts.now)}  {instance.node}".rstrip(), "dim")
    return line


def _signals(signals: EngineSignals) -> str:
    """Returns signals as text: a dash for an unknown one, with the age of old signals."""
    if signals.sleeping:
        return "sleeps"
    text = (
        f"{formatting.format_count(signals.running)} running, {formatting.format_count(signals.waiting)} waiting  KV "
        f"{formatting.format_share(signals.kv_usage)}"
        f"  prefix hits {formatting.format_share(signals.hit_share)}"
    )
    old = signals.age_seconds is None or signals.age_seconds > _STALE_SECONDS
    return f"{text}  ({formatting.format_seconds(signals.age_seconds)} old)" if old else text


def _signals_source(report: ModelReport) -> Text:
    if report.signals_problem:
        return Text(f"what engines say: not to be had: {report.signals_problem}", style="magenta")
    count = f"what engines say: from {formatting.pluralize(report.gateways_reached, 'gateway')}"
    routed = (
        ""
        if report.routed_instances is None
        else f", of which the best routes to {formatting.pluralize(int(report.routed_instances), 'instance')}"
    )
    return Text(
        count + (routed if report.gateways_reached > 1 else routed.replace("of which the best", "which")), style="dim"
    )


def _event(event: EventReport, now: float) -> Text:
    line = Text.assemble(
        (f"{format_age(event.at, now):>4}  ", "dim"), (event.reason, "yellow" if event.warning else "")
    )
    if event.about:
        line.append(f"  {event.about}", "dim")
    line.append(f"  {shorten(event.note, _MAX_MESSAGE)}")
    if event.count > 1:
        line.append(f"  ({event.count} times)", "dim")
    return line


def to_plain(report: ModelReport, advice: Advice) -> dict[str, Any]:
    """Returns the complete report for a document; null is unknown."""
    return {
        "key": report.key,
        "client_name": report.client_name,
        "engine": report.engine,
        "source": report.source,
        "ready": report.ready,
        "conditions": [dict(item) for item in report.conditions],
        "pools": [asdict(pool) for pool in report.pools],
        "events": [asdict(item) for item in report.events],
        "gateways_heard": report.gateways_reached,
        "instances_routed": report.routed_instances,
        "pods_problem": report.pods_problem or None,
        "signals_problem": report.signals_problem or None,
        "problem": advice.is_problem,
        "next": advice.text,
    }


def render_table(models: Sequence[Manifest], now: float, *, is_wide: bool = False) -> str:
    """Returns a table like kubectl's. ``is_wide``: with pools and the model's URI."""
    rows = [(*TABLE_HEADINGS, *WIDE_HEADINGS[: 2 * is_wide])]
    for model in models:
        age = format_age(parse_time(metadata_of(model).get("creationTimestamp")), now)
        rows.append((*table_row(model), age, *wide_cells(model)[: 2 * is_wide]))
    return formatting.align_columns(rows)
