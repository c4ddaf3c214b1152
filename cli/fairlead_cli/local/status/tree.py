"""A report as a tree for people and as JSON for programs."""

from dataclasses import asdict
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from fairlead_autoscaler.enforcer import describe_replicas
from fairlead_cli import formatting
from fairlead_cli.local.status.report import ASLEEP_STATE, READY_STATE, PoolScaling, StackModelReport, StackReport
from fairlead_cli.local.view.fragments import (
    PHASE_MARKS,
    PHASE_STYLES,
    RULE_STYLES,
    format_clock,
    format_result,
    last_minute_text,
)
from fairlead_cli.management import api_types


def render_tree(report: StackReport) -> RenderableType:
    """The gateway, then each model with pools, instances, last decisions and advice."""
    parts: list[RenderableType] = [_gateway(report)]
    for model in report.models:
        parts += [_model(model), _advice(model)]
    if not report.models:
        parts.append(Text("no model is served"))
    return Group(*parts)


def to_json(report: StackReport) -> bytes:
    """The same, complete, for programs."""
    return msgspec.json.format(msgspec.json.encode(_plain(report)))


def _plain(report: StackReport) -> dict[str, Any]:
    return {
        "url": report.url,
        "manage": report.manage,
        "ready": report.stats.ready,
        "notes": report.stats.notes,
        "uptime_seconds": report.stats.uptime_seconds,
        "problem": report.has_problem,
        "models": [
            {
                "key": found.model.key,
                "preset": found.model.preset,
                "objectives": found.model.objectives,
                "instances_ready": found.ready,
                "instances_expected": found.expected,
                "pools": [
                    {"name": name, "instances": [_plain_instance(found, one) for one in instances]}
                    for name, instances in found.pools().items()
                ],
                "autoscaler": [asdict(sized) for sized in found.scaled_pools],
                "in_flight": found.stats.in_flight,
                "queue": found.stats.queue,
                "last_minute": found.stats.window,
                "totals": found.stats.totals,
                "decisions": found.decisions,
                "problem": found.advice.is_problem,
                "next": found.advice.text,
            }
            for found in report.models
        ],
    }


def _plain_instance(found: StackModelReport, one: api_types.Instance) -> dict[str, Any]:
    return {**msgspec.to_builtins(one), "last_minute": found.stats.instances.get(one.id)}


def _gateway(report: StackReport) -> Text:
    ready = report.stats.ready
    line = Text.assemble(
        ("√ " if ready else "× ", "green" if ready else "red"),
        ("gateway", "bold"),
        f"  {report.url or report.manage}  {'ready' if ready else 'not ready'}",
        f"  up {formatting.format_seconds(round(report.stats.uptime_seconds))}",
    )
    for note in report.stats.notes:
        line.append(f"\n  ‼ {note}", "yellow")
    return line


def _model(found: StackModelReport) -> Tree:
    stats = found.stats
    head = Text.assemble(
        ("×", "red") if found.advice.is_problem else ("√", "green"),
        (f" {found.model.key.removeprefix('default/')}", "bold cyan"),
        (f"  {found.model.preset}", "dim"),
        f"  {_ready(found.ready, found.expected, found.asleep)}  {stats.in_flight} in flight  {stats.queue} in the queue",
    )
    root = Tree(head, guide_style="dim")
    root.add(Text("last minute  ", "dim").append_text(last_minute_text(stats.window)))
    for name, instances in found.pools().items():
        ready, asleep = (sum(one.state == state for one in instances) for state in (READY_STATE, ASLEEP_STATE))
        pool = root.add(Text.assemble(("pool ", "dim"), name, f"  {_ready(ready, len(instances) - asleep, asleep)}"))
        for one in instances:
            pool.add(_instance(one, found.stats.instances.get(one.id)))
    for sized in found.scaled_pools:
        root.add(_sized(sized))
    if found.decisions:
        last = root.add(Text("last decisions", style="dim"))
        for decision in found.decisions:
            last.add(_decision(decision))
    return root


def _ready(ready: int, expected: int, asleep: int) -> str:
    return f"{ready}/{expected} ready" + (f", {asleep} asleep" if asleep else "")


def _instance(one: api_types.Instance, stats: api_types.InstanceStats | None) -> Text:
    if one.state == ASLEEP_STATE:
        style = PHASE_STYLES[ASLEEP_STATE]
        return Text.assemble(
            (f"{PHASE_MARKS[ASLEEP_STATE]} ", style),
            one.display_name,
            (f"  {one.state}", style),
            (f"  {one.url}", "dim"),
        )
    ready = one.state == READY_STATE
    line = Text.assemble(
        ("√ " if ready else "‼ ", PHASE_STYLES.get(one.state, "")),
        one.display_name,
        (f"  {one.state}", PHASE_STYLES.get(one.state, "")),
        f"  {formatting.format_count(one.in_flight)} in flight, {formatting.format_count(one.waiting)} waiting",
        f"  backlog {formatting.format_seconds(one.backlog_seconds)}",
    )
    if stats is not None and stats.requests:
        line.append(
            f"  TTFT {formatting.format_seconds(stats.ttft_mean_seconds)}  work {formatting.format_share(stats.share_of_work)}"
        )
    return line.append(f"  {one.url}", "dim")


def _sized(sized: PoolScaling) -> Text:
    line = Text.assemble(
        ("autoscaler wants ", "dim"),
        f"{describe_replicas(sized.wanted, sized.asleep)} of {sized.pool}",
        (f", of {sized.least} to {sized.most}  ", "dim"),
        (sized.rule, RULE_STYLES.get(sized.rule, "")),
        (f"  {sized.reason}", "dim"),
    )
    return line if sized.unwritten is None else line.append(f"; not done: {sized.unwritten}", "yellow")


def _decision(decision: api_types.Decision) -> Text:
    choice = decision.choices[-1] if decision.choices else api_types.Choice()
    where = api_types.short_instance_name(choice.instance) if choice.instance else "nowhere"
    return Text.assemble(
        (f"{format_clock(decision.wall)}  ", "dim"),
        f"{formatting.format_count(decision.prompt_tokens)} tokens → {where}  ",
        (choice.rule, RULE_STYLES.get(choice.rule, "")),
        f"  {format_result(decision.outcome)}",
        (f"  {choice.reason}", "dim"),
    )


def _advice(found: StackModelReport) -> Text:
    return Text.assemble(("next: ", "bold"), (found.advice.text, "red" if found.advice.is_problem else ""))
