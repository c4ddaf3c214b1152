"""``fairlead local status``: the stack on this machine, and a line of advice."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from fairlead import management_api as api
from fairlead.errors import BadInput
from fairlead.names import closest_matches
from fairlead.settings import CliSettings, read_settings
from fairlead_autoscaler.scaling_policy import describe_replicas
from fairlead_cli import formatting
from fairlead_cli.addresses import service_url
from fairlead_cli.console import program_name, stdout_console
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, StackUnreachable, report_failure
from fairlead_cli.formatting import Advice, short_instance_name
from fairlead_cli.local.run_directory import newest_stack, running_stacks
from fairlead_cli.local.view.live_view import (
    PHASE_MARKS,
    PHASE_STYLES,
    RULE_STYLES,
    format_clock,
    format_result,
    last_minute_text,
)
from fairlead_cli.management.client import GatewaySnapshot, ManagementClient
from fairlead_cli.output import OutputFlag, OutputFormat, format_document, is_document
from fairlead_cli.scaling.autoscaler_client import PoolScaling, read_pool_scaling
from fairlead_cli.target import ModelFlag
from fairlead_cli.watching import WatchFlag, show_repeatedly

READY_STATE = "Ready"
ASLEEP_STATE = "Sleeping"

DECISIONS = 5


@dataclass(frozen=True, slots=True)
class StackModelReport:
    """The state of one model. ``expected_instances``: how many it should have; None is unknown."""

    model: api.ModelOut
    stats: api.ModelStatsOut
    decisions: tuple[api.DecisionOut, ...]
    expected_instances: int | None
    advice: Advice
    scaled_pools: tuple[PoolScaling, ...] = ()

    @property
    def ready(self) -> int:
        return sum(instance.state == READY_STATE for instance in self.model.instances)

    @property
    def asleep(self) -> int:
        return sum(instance.state == ASLEEP_STATE for instance in self.model.instances)

    @property
    def expected(self) -> int:
        return max(len(self.model.instances), self.expected_instances or 0) - self.asleep

    def pools(self) -> dict[str, list[api.InstanceOut]]:
        """Returns the instances by pool, in their order."""
        pools: dict[str, list[api.InstanceOut]] = {}
        for instance in self.model.instances:
            pools.setdefault(instance.pool, []).append(instance)
        return pools


@dataclass(frozen=True, slots=True)
class StackReport:
    """The gateway and its models."""

    url: str | None
    manage: str
    stats: api.StatsOut
    models: tuple[StackModelReport, ...]

    @property
    def has_problem(self) -> bool:
        return not self.stats.ready or any(model.advice.is_problem for model in self.models)


def build_report(
    snapshot: GatewaySnapshot,
    *,
    url: str | None,
    manage: str,
    expected_instances: Mapping[str, int],
    only_key: str | None = None,
    program: str = "fairlead",
    scaling_by_model: Mapping[str, Sequence[PoolScaling]] = MappingProxyType({}),
) -> StackReport:
    """Returns the report of a stack from the answers of its gateway and autoscaler.

    only_key: key of the only model to report; None for all.

    scaling_by_model: the autoscaler's decision for each pool.

    program: name of this command in hints.
    """
    models = []
    for model in snapshot.fleet.models:
        if only_key is not None and model.key != only_key:
            continue
        stats = snapshot.stats.models.get(model.key, api.ModelStatsOut())
        decisions = tuple(decision for decision in snapshot.decisions.decisions if decision.model == model.key)
        expected = expected_instances.get(model.key)
        pools = tuple(scaling_by_model.get(model.key, ()))
        advice = advise(model, stats, decisions, expected, program, pools)
        models.append(StackModelReport(model, stats, decisions, expected, advice, pools))
    return StackReport(url, manage, snapshot.stats, tuple(models))


def advise(
    model: api.ModelOut,
    stats: api.ModelStatsOut,
    decisions: Sequence[api.DecisionOut],
    expected_instances: int | None,
    program: str = "fairlead",
    scaled_pools: Sequence[PoolScaling] = (),
) -> Advice:
    """Returns the next thing to do, the most urgent first."""
    states = [instance.state for instance in model.instances]
    ready, starting = states.count(READY_STATE), states.count("Starting")
    missing = max(0, (expected_instances or 0) - len(states))
    window = stats.window
    # Without a ready engine, nothing else is worth saying.
    if not ready:
        if starting:
            return Advice(
                True, f"{formatting.pluralize(starting, 'engine')} starting; requests wait until one is ready"
            )
        if scaled_pools and states and all(state == ASLEEP_STATE for state in states):
            return Advice(False, "it sleeps: the next request waits for an engine, which wakes then")
        if scaled_pools and not states and not any(pool.wanted for pool in scaled_pools):
            return Advice(False, "it has no engine: the next request waits while one starts")
        return Advice(True, "no engine is running: the output of `fairlead up` says why")
    if missing:
        loss = f"{missing} of {expected_instances} engines ended and will be started again"
        return Advice(True, f"{loss}; the output of `fairlead up` says why")
    if window.errors:
        failed = next((decision for decision in decisions if _has_failed(decision)), None)
        which = failed.request_id if failed else "ID (an answer's header x-fairlead-decision)"
        requests = formatting.pluralize(window.requests, "request")
        return Advice(
            True, f"{window.errors} of {requests} failed in the last minute: {program} explain request {which}"
        )
    target = model.objectives.target
    if window.within_objective is not None and window.within_objective < target:
        attainment = (
            f"{formatting.format_share(window.within_objective)} of requests meet the SLO, "
            f"{formatting.format_share(target)} should"
        )
        return Advice(True, f"{attainment}: {_remedy(model, ready, program, scaled_pools)}, or relax spec.slo")
    if starting:
        return Advice(False, f"{formatting.pluralize(starting, 'engine')} starting")
    if not stats.totals.requests and not stats.in_flight:
        return Advice(False, f"nothing was asked yet: {program} chat {model.name}")
    return Advice(False, "nothing to do")


def _has_failed(decision: api.DecisionOut) -> bool:
    """Whether the request failed by no fault of its client."""
    outcome = decision.outcome
    return (
        outcome is not None
        and not outcome.client_gone
        and (outcome.status >= 500 or (outcome.error is not None and outcome.status < 400))
    )


def _remedy(model: api.ModelOut, ready: int, program: str, scaled_pools: Sequence[PoolScaling]) -> str:
    """Returns what may bring a model back to its SLO."""
    if not scaled_pools:
        return f"raise minReplicas in the manifest of `{program} up FILE`"
    blocked = next((pool for pool in scaled_pools if pool.unwritten is not None), None)
    if blocked is not None:
        return f"the autoscaler wants {blocked.wanted} of {blocked.pool}, which is not applied: {blocked.unwritten}"
    if all(pool.wanted >= pool.most for pool in scaled_pools):
        return "raise maxReplicas"
    if sum(pool.wanted for pool in scaled_pools) > ready:
        return "the autoscaler is adding engines"
    return f"the autoscaler considers the present engines enough (`{program} explain scaling {model.name}` says why)"


def render_tree(report: StackReport) -> RenderableType:
    """Returns the gateway, then each model with pools, instances, last decisions and advice."""
    parts: list[RenderableType] = [_gateway_line(report)]
    for model in report.models:
        parts += [
            _model_tree(model),
            (Text.assemble(("next: ", "bold"), (model.advice.text, "red" if model.advice.is_problem else ""))),
        ]
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


def _instance_document(model_report: StackModelReport, instance: api.InstanceOut) -> dict[str, Any]:
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


def _instance_line(instance: api.InstanceOut, stats: api.InstanceStatsOut | None) -> Text:
    if instance.state == ASLEEP_STATE:
        style = PHASE_STYLES[ASLEEP_STATE]
        return Text.assemble(
            (f"{PHASE_MARKS[ASLEEP_STATE]} ", style),
            short_instance_name(instance.id),
            (f"  {instance.state}", style),
            (f"  {instance.url}", "dim"),
        )
    ready = instance.state == READY_STATE
    line = Text.assemble(
        ("√ " if ready else "‼ ", PHASE_STYLES.get(instance.state, "")),
        short_instance_name(instance.id),
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


def _decision_line(decision: api.DecisionOut) -> Text:
    choice = decision.choices[-1] if decision.choices else api.ChoiceOut()
    instance_name = short_instance_name(choice.instance) if choice.instance else "nowhere"
    return Text.assemble(
        (f"{format_clock(decision.wall)}  ", "dim"),
        f"{formatting.format_count(decision.prompt_tokens)} tokens → {instance_name}  ",
        (choice.rule, RULE_STYLES.get(choice.rule, "")),
        f"  {format_result(decision.outcome)}",
        (f"  {choice.reason}", "dim"),
    )


def local_status(
    model: ModelFlag = None,
    *,
    manage: Annotated[
        str | None, Parameter(help="A gateway's management address. Default: that of the running `fairlead up`.")
    ] = None,
    watch: WatchFlag = False,
    output: OutputFlag = "table",
) -> int:
    """Show what the stack of `fairlead up` serves, how well, its last decisions, and what to do
    next.

    Exits 0 when all is well, 1 on a problem, 2 on wrong usage, 3 when no gateway can be reached.
    """
    return show_repeatedly(lambda: _show_status(model, manage, output), watch=watch, output=output)


def _show_status(model: str | None, manage: str | None, output: OutputFormat) -> int:
    try:
        stack = None if manage else newest_stack("--manage")
        address = stack.manage if stack else service_url(manage or "", flag="--manage")
        known = stack or next((running for running in running_stacks() if running.manage == address), None)
        snapshot, key = asyncio.run(_fetch(address, read_settings(CliSettings, os.environ).manage_token, model))
    except StackUnreachable as error:
        return report_failure(error, UNREACHABLE)
    wanted: Mapping[str, int] = known.engines if known else {}
    url = known.url if known else None
    sized = _sized(known.autoscaler) if known else {}
    stack_report = build_report(
        snapshot,
        url=url,
        manage=address,
        expected_instances=wanted,
        only_key=key,
        program=program_name(),
        scaling_by_model=sized,
    )
    _print(stack_report, output)
    other_addresses = [running.manage for running in running_stacks() if running != stack] if stack else []
    if other_addresses:
        print(
            f"this is the newest stack; others run too: {program_name()} local status --manage {' or '.join(other_addresses)}",
            file=sys.stderr,
        )
    return PROBLEM if stack_report.has_problem else OK


def _sized(autoscaler: str) -> Mapping[str, Sequence[PoolScaling]]:
    """Returns the autoscaler's decision for each pool, by model. Prints an error to stderr.

    autoscaler: its URL; empty for none. Without an answer, the result is empty.
    """
    if not autoscaler:
        return {}

    try:
        return read_pool_scaling(autoscaler)
    except (StackUnreachable, LookupError, ValueError) as error:
        print(f"the autoscaler's decisions cannot be read: {error}", file=sys.stderr)
        return {}


async def _fetch(address: str, token: str | None, model: str | None) -> tuple[GatewaySnapshot, str | None]:
    async with ManagementClient(address, token) as management:
        fleet = await management.fleet()
        key = None if model is None else _key(fleet, model)
        return GatewaySnapshot(fleet, await management.stats(), await management.decisions(DECISIONS, key)), key


def _key(fleet: api.FleetOut, name: str) -> str:
    keys = [model.key for model in fleet.models if name in (model.key, model.name)]
    if len(keys) == 1:
        return keys[0]
    if keys:
        raise BadInput(f"several models are called {name!r}", field="MODEL", hint=f"say which: {', '.join(keys)}")
    names = [model.name for model in fleet.models]
    suggestions = closest_matches(name, names) or names
    raise BadInput(f"no model is called {name!r}", field="MODEL", hint=f"known: {', '.join(suggestions) or 'none'}")


def _print(stack_report: object, output: OutputFormat) -> None:

    assert isinstance(stack_report, StackReport)
    if is_document(output):
        print(format_document(to_plain(stack_report), output))
        return
    stdout_console().print(render_tree(stack_report), overflow="ellipsis", no_wrap=True)
