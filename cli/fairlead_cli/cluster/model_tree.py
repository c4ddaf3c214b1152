"""A model's report as a tree for people and as JSON for programs; and the table of all models."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from fairlead.api import ConditionType
from fairlead.kube.resource import Manifest, metadata_of
from fairlead_cli.cluster.advice import Advice, revision_note
from fairlead_cli.cluster.model_report import EventReport, InstanceReport, ModelReport, PoolReport, table_row
from fairlead_cli.cluster.reading import Condition, short
from fairlead_cli.cluster.signals import Signals
from fairlead_cli.cluster.times import age, wall
from fairlead_cli.local import words

STYLES: Final = {
    "Ready": "green",
    "Routed": "green",
    "Worker": "green",
    "Starting": "yellow",
    "Draining": "cyan",
    "Sleeping": "dim",
}
_OLD_SECONDS: Final = 10.0
_MESSAGE: Final = 240
COLUMNS: Final = ("NAMESPACE", "NAME", "CLIENT-NAME", "ENGINE", "READY", "OBJECTIVES", "REASON", "AGE")


def tree(report: ModelReport, advice: Advice) -> RenderableType:
    """Model, conditions, pools with pods and what their engines say, the last events, and what to do next."""
    root = Tree(_head(report, advice), guide_style="dim")
    for one in report.conditions:
        root.add(_condition(one, report.facts.now))
    for pool in report.pools:
        branch = root.add(_pool(pool))
        for instance in pool.instances:
            branch.add(_instance(instance, report))
    if report.pods_unknown:
        root.add(Text(f"pods: not to be had: {report.pods_unknown}", style="magenta"))
    root.add(_heard(report))
    if report.events:
        events = root.add(Text("last events", style="dim"))
        for event in report.events:
            events.add(_event(event, report.facts.now))
    return Group(root, Text.assemble(("next: ", "bold"), (advice.text, "red" if advice.problem else "")))


def _head(report: ModelReport, advice: Advice) -> Text:
    ready = report.condition(ConditionType.READY)
    up = ready is not None and ready.get("status") == "True"
    line = Text.assemble(
        ("×", "red") if advice.problem else ("√", "green") if up else ("‼", "yellow"),
        (f" {report.key}", "bold cyan"),
        f"  {report.ready or words.UNKNOWN} ready  {report.engine}  {report.source}",
        (f"  {age(report.since, report.facts.now)}", "dim"),
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
        (f"  {age(wall(one.get('lastTransitionTime')), now)}", "dim"),
        f"  {short(str(one.get('message', '')), _MESSAGE)}",
    )


def _pool(pool: PoolReport) -> Text:
    numbers = f"{words.count(pool.ready)}/{words.count(pool.desired)} ready"
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
    line = Text.assemble((f"{sign} {one.name}", ""), (f"  {one.state}", STYLES.get(one.state, "red")))
    if one.why:
        line.append(f"  {one.why}", "" if one.state == "Starting" and sign == "‼" else "red")
    for said in one.signals:
        rank = f"rank {said.id.rpartition('/')[2]}: " if len(one.signals) > 1 else ""
        line.append(f"  {rank}{_signals(said)}")
    if one.restarts:
        line.append(f"  restarted {words.plural(one.restarts, 'time')}", "yellow")
    if one.node or one.since is not None:
        line.append(f"  {age(one.since, report.facts.now)}  {one.node}".rstrip(), "dim")
    return line


def _signals(one: Signals) -> str:
    """What nobody told is a dash; what was told long ago says so."""
    if one.sleeping:
        return "sleeps"
    text = (
        f"{words.count(one.running)} running, {words.count(one.waiting)} waiting  KV {words.share(one.kv_usage)}"
        f"  prefix hits {words.share(one.hit_share)}"
    )
    old = one.age_seconds is None or one.age_seconds > _OLD_SECONDS
    return f"{text}  ({words.time(one.age_seconds)} old)" if old else text


def _heard(report: ModelReport) -> Text:
    if report.unheard:
        return Text(f"what engines say: not to be had: {report.unheard}", style="magenta")
    count = f"what engines say: from {words.plural(report.heard, 'gateway')}"
    routed = (
        "" if report.routed is None else f", of which the best routes to {words.plural(int(report.routed), 'instance')}"
    )
    return Text(count + (routed if report.heard > 1 else routed.replace("of which the best", "which")), style="dim")


def _event(one: EventReport, now: float) -> Text:
    line = Text.assemble((f"{age(one.at, now):>4}  ", "dim"), (one.reason, "yellow" if one.warning else ""))
    if one.about:
        line.append(f"  {one.about}", "dim")
    line.append(f"  {short(one.note, _MESSAGE)}")
    if one.count > 1:
        line.append(f"  ({one.count} times)", "dim")
    return line


def as_plain(report: ModelReport, advice: Advice) -> dict[str, Any]:
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
        "gateways_heard": report.heard,
        "instances_routed": report.routed,
        "pods_problem": report.pods_unknown or None,
        "signals_problem": report.unheard or None,
        "problem": advice.problem,
        "next": advice.text,
    }


def as_json(value: object) -> str:
    """Any of these as text."""
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def table(models: Sequence[Manifest], now: float) -> str:
    """Columns as kubectl has them, as wide as they must be."""
    rows = [COLUMNS, *((*table_row(one), age(wall(metadata_of(one).get("creationTimestamp")), now)) for one in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
