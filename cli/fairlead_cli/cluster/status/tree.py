"""A model's report as a tree for people and as JSON for programs; and the table of all models."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from fairlead.api import ConditionType
from fairlead.kube.resources import Manifest, metadata_of
from fairlead_cli import formatting
from fairlead_cli.cluster.object_fields import Condition, shorten
from fairlead_cli.cluster.status.advice import ModelAdvice, revision_note
from fairlead_cli.cluster.status.engine_signals import EngineSignals
from fairlead_cli.cluster.status.model_report import EventReport, InstanceReport, ModelReport, PoolReport, table_row
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
TABLE_HEADINGS: Final = ("NAMESPACE", "NAME", "CLIENT-NAME", "ENGINE", "READY", "OBJECTIVES", "REASON", "AGE")


def render_tree(report: ModelReport, advice: ModelAdvice) -> RenderableType:
    """Model, conditions, pools with pods and what their engines say, the last events, and what to do next."""
    root = Tree(_head(report, advice), guide_style="dim")
    for one in report.conditions:
        root.add(_condition(one, report.facts.now))
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


def _head(report: ModelReport, advice: ModelAdvice) -> Text:
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


def _condition(one: Condition, now: float) -> Text:
    good = (one.get("status") == "True") == (one.get("type") not in ("Stalled", "NameTaken", "Reconciling"))
    style = "green" if good else "yellow" if one.get("type") == "Reconciling" else "red"
    return Text.assemble(
        (f"{one.get('type')} {one.get('status')}", style),
        f"  {one.get('reason')}",
        (f"  {format_age(parse_time(one.get('lastTransitionTime')), now)}", "dim"),
        f"  {shorten(str(one.get('message', '')), _MAX_MESSAGE)}",
    )


def _pool(pool: PoolReport) -> Text:
    numbers = f"{formatting.format_count(pool.ready)}/{formatting.format_count(pool.desired)} ready"
    if pool.instances and pool.updated is not None and pool.desired is not None and pool.updated < pool.desired:
        numbers += f", {pool.updated} of the present spec"
    return Text.assemble(("pool ", "dim"), pool.name, f"  {pool.role}  {pool.accelerator}".rstrip(), f"  {numbers}")


def _instance(one: InstanceReport, report: ModelReport) -> Text:
    sign = (
        "√"
        if one.state in ("Ready", "Routed", "Worker", "Sleeping")
        else "‼"
        if one.state == "Draining" or not one.why
        else "×"
    )
    line = Text.assemble((f"{sign} {one.name}", ""), (f"  {one.state}", STATE_STYLES.get(one.state, "red")))
    if one.why:
        line.append(f"  {one.why}", "" if one.state == "Starting" and sign == "‼" else "red")
    for said in one.signals:
        rank = f"rank {said.id.rpartition('/')[2]}: " if len(one.signals) > 1 else ""
        line.append(f"  {rank}{_signals(said)}")
    if one.restarts:
        line.append(f"  restarted {formatting.pluralize(one.restarts, 'time')}", "yellow")
    if one.node or one.since is not None:
        line.append(f"  {format_age(one.since, report.facts.now)}  {one.node}".rstrip(), "dim")
    return line


def _signals(one: EngineSignals) -> str:
    """What nobody told is a dash; what was told long ago says so."""
    if one.sleeping:
        return "sleeps"
    text = (
        f"{formatting.format_count(one.running)} running, {formatting.format_count(one.waiting)} waiting  KV "
        f"{formatting.format_share(one.kv_usage)}"
        f"  prefix hits {formatting.format_share(one.hit_share)}"
    )
    old = one.age_seconds is None or one.age_seconds > _STALE_SECONDS
    return f"{text}  ({formatting.format_seconds(one.age_seconds)} old)" if old else text


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


def _event(one: EventReport, now: float) -> Text:
    line = Text.assemble((f"{format_age(one.at, now):>4}  ", "dim"), (one.reason, "yellow" if one.warning else ""))
    if one.about:
        line.append(f"  {one.about}", "dim")
    line.append(f"  {shorten(one.note, _MAX_MESSAGE)}")
    if one.count > 1:
        line.append(f"  ({one.count} times)", "dim")
    return line


def to_plain(report: ModelReport, advice: ModelAdvice) -> dict[str, Any]:
    """For programs: complete, and null for what is not known."""
    return {
        "key": report.key,
        "client_name": report.client_name,
        "engine": report.engine,
        "source": report.source,
        "ready": report.ready,
        "conditions": [dict(one) for one in report.conditions],
        "pools": [asdict(pool) for pool in report.pools],
        "events": [asdict(one) for one in report.events],
        "gateways_heard": report.gateways_reached,
        "instances_routed": report.routed_instances,
        "pods_problem": report.pods_problem or None,
        "signals_problem": report.signals_problem or None,
        "problem": advice.is_problem,
        "next": advice.text,
    }


def to_json(value: object) -> str:
    """Any of these as text."""
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def render_table(models: Sequence[Manifest], now: float) -> str:
    """Columns as kubectl has them, as wide as they must be."""
    rows = [
        TABLE_HEADINGS,
        *((*table_row(one), format_age(parse_time(metadata_of(one).get("creationTimestamp")), now)) for one in models),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TABLE_HEADINGS))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
