"""A stack's report as a tree for a terminal and as a document."""

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
    """Returns the gateway, then each model with pools, instances, last decisions and advice."""
    parts: list[RenderableType] = [_gateway_line(report)]
    for model in report.models:
        parts += [_model_tree(model), _advice_line(model)]
    if not report.models:
        parts.append(Text("no model is served"))
    return Group(*parts)


def to_plain(report: StackReport) -> dict[str, Any]:
    """Returns the complete report for a document."""
    return {
        "url": report.url,
        "manage": report.manage,
        "ready": report.stats.ready,
        "notes": report.stats.notes,
        "uptime_seconds": report.stats.uptime_seconds,
        "problem": report.has_problem,
        "models": [
            {
                "key": model_report.model.key,
                "preset": model_report.model.preset,
                "objectives": model_report.model.objectives,
                "instances_ready": model_report.ready,
                "instances_expected": model_report.expected,
                "pools": [
                    {"name": name, "instances": [_instance_document(model_report, instance) for instance in instances]}
                    for name, instances in model_report.pools().items()
                ],
                "autoscaler": [asdict(scaling) for scaling in model_report.scaled_pools],
                "in_flight": model_report.stats.in_flight,
                "queue": model_report.stats.queue,
                "last_minute": model_report.stats.window,
                "totals": model_report.stats.totals,
                "decisions": model_report.decisions,
                "problem": model_report.advice.is_problem,
                "next": model_report.advice.text,
            }
            for model_report in report.models
        ],
    }


def _instance_document(model_report: StackModelReport, instance: api_types.Instance) -> dict[str, Any]:
    return {**msgspec.to_builtins(instance), "last_minute": model_report.stats.instances.get(instance.id)}


def _gateway_line(report: StackReport) -> Text:
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


def _model_tree(model_report: StackModelReport) -> Tree:
    stats = model_report.stats
    head = Text.assemble(
        ("×", "red") if model_report.advice.is_problem else ("√", "green"),
        (f" {model_report.model.key.removeprefix('default/')}", "bold cyan"),
        (f"  {model_report.model.preset}", "dim"),
        f"  {_ready_text(model_report.ready, model_report.expected, model_report.asleep)}",
        f"  {stats.in_flight} in flight  {stats.queue} in the queue",
    )
    root = Tree(head, guide_style="dim")
    root.add(Text("last minute  ", "dim").append_text(last_minute_text(stats.window)))
    for name, instances in model_report.pools().items():
        ready, asleep = (
            sum(instance.state == state for instance in instances) for state in (READY_STATE, ASLEEP_STATE)
        )
        pool = root.add(
            Text.assemble(("pool ", "dim"), name, f"  {_ready_text(ready, len(instances) - asleep, asleep)}")
        )
        for instance in instances:
            pool.add(_instance_line(instance, model_report.stats.instances.get(instance.id)))
    for scaling in model_report.scaled_pools:
        root.add(_scaling_line(scaling))
    if model_report.decisions:
        last = root.add(Text("last decisions", style="dim"))
        for decision in model_report.decisions:
            last.add(_decision_line(decision))
    return root


def _ready_text(ready: int, expected: int, asleep: int) -> str:
    return f"{ready}/{expected} ready" + (f", {asleep} asleep" if asleep else "")


def _instance_line(instance: api_types.Instance, stats: api_types.InstanceStats | None) -> Text:
    if instance.state == ASLEEP_STATE:
        style = PHASE_STYLES[ASLEEP_STATE]
        return Text.assemble(
            (f"{PHASE_MARKS[ASLEEP_STATE]} ", style),
            instance.display_name,
            (f"  {instance.state}", style),
            (f"  {instance.url}", "dim"),
        )
    ready = instance.state == READY_STATE
    line = Text.assemble(
        ("√ " if ready else "‼ ", PHASE_STYLES.get(instance.state, "")),
        instance.display_name,
        (f"  {instance.state}", PHASE_STYLES.get(instance.state, "")),
        f"  {formatting.format_count(instance.in_flight)} in flight, {formatting.format_count(instance.waiting)} waiting",
        f"  backlog {formatting.format_seconds(instance.backlog_seconds)}",
    )
    if stats is not None and stats.requests:
        line.append(
            f"  TTFT {formatting.format_seconds(stats.ttft_mean_seconds)}  work {formatting.format_share(stats.share_of_work)}"
        )
    return line.append(f"  {instance.url}", "dim")


def _scaling_line(scaling: PoolScaling) -> Text:
    line = Text.assemble(
        ("autoscaler wants ", "dim"),
        f"{describe_replicas(scaling.wanted, scaling.asleep)} of {scaling.pool}",
        (f", of {scaling.least} to {scaling.most}  ", "dim"),
        (scaling.rule, RULE_STYLES.get(scaling.rule, "")),
        (f"  {scaling.reason}", "dim"),
    )
    return line if scaling.unwritten is None else line.append(f"; not done: {scaling.unwritten}", "yellow")


def _decision_line(decision: api_types.Decision) -> Text:
    choice = decision.choices[-1] if decision.choices else api_types.Choice()
    instance_name = api_types.short_instance_name(choice.instance) if choice.instance else "nowhere"
    return Text.assemble(
        (f"{format_clock(decision.wall)}  ", "dim"),
        f"{formatting.format_count(decision.prompt_tokens)} tokens → {instance_name}  ",
        (choice.rule, RULE_STYLES.get(choice.rule, "")),
        f"  {format_result(decision.outcome)}",
        (f"  {choice.reason}", "dim"),
    )


def _advice_line(model_report: StackModelReport) -> Text:
    return Text.assemble(
        ("next: ", "bold"), (model_report.advice.text, "red" if model_report.advice.is_problem else "")
    )
