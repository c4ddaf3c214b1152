"""``fairlead status``: models of a cluster, their pools, instances, and a line of advice."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from fairlead.api.conditions import ConditionType
from fairlead.errors import BadInput
from fairlead.fleet.labels import MODEL_LABEL
from fairlead.kube.client import KubeApi
from fairlead.kube.conditions import parse_time
from fairlead.kube.errors import Forbidden, NotFound, Unreachable
from fairlead.kube.resources import (
    EVENTS,
    MODEL_DEPLOYMENTS,
    PODS,
    Manifest,
    is_deleting,
    key_of,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead.names import closest_matches
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli import formatting
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.access.connection import connect, resolve_access, unreachable_error
from fairlead_cli.cluster.components import GATEWAY, with_component
from fairlead_cli.cluster.facts_collector import list_objects, list_own_objects, read_server_clock
from fairlead_cli.cluster.object_fields import (
    MAX_CONDITION_MESSAGE,
    Condition,
    MissingValue,
    format_age,
    namespace_name,
    shorten,
)
from fairlead_cli.cluster.pod_http import PodReport
from fairlead_cli.cluster.status.advice import advise, revision_note
from fairlead_cli.cluster.status.model_report import (
    EngineSignals,
    EventReport,
    InstanceReport,
    ModelFacts,
    ModelReport,
    PoolReport,
    build_report,
    group_names,
    is_about_group,
    table_row,
    wide_cells,
)
from fairlead_cli.console import program_name, stdout_console, terminal_text
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, ClusterUnreachable, report_failure
from fairlead_cli.formatting import Advice
from fairlead_cli.local.run_directory import running_stacks
from fairlead_cli.output import OutputFlag, OutputFormat, format_document, is_document
from fairlead_cli.target import ClusterOptions, ModelFlag
from fairlead_cli.watching import WatchFlag, show_repeatedly

_MAX_GATEWAYS: Final = 8


_DEFAULTS = ClusterOptions()

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


def status(
    model: ModelFlag = None,
    *,
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _DEFAULTS,
    watch: WatchFlag = False,
    output: OutputFlag = "table",
) -> int:
    """Show what a cluster serves, how well, and what to do next.

    Without a model it is a table of all models, or of those in the namespace of -n. With one, it is
    the model with its pools, pods, engine signals, conditions and last events. `fairlead local
    status` shows the stack of `fairlead up`.

    Exits 0 when all is well, 1 on a problem, 2 on wrong usage, 3 when no API server can be reached.
    """

    def show() -> int:
        try:
            return asyncio.run(_run(model, cluster, output, SystemClock()))
        except ClusterUnreachable as error:
            code = report_failure(error, UNREACHABLE)
            if running_stacks():
                print(f"for the stack on this machine, run: {program_name()} local status", file=sys.stderr)
            return code

    return show_repeatedly(show, watch=watch, output=output)


async def _run(model: str | None, way: ClusterOptions, output: OutputFormat, clock: Clock) -> int:
    access = resolve_access(way)
    async with connect(access) as (api, _):
        try:
            if model is None:
                return await _print_all(api, way, output, clock)
            found = await find_model(api, model, way.namespace)
            model_report = build_report(await collect_model_facts(api, found, clock, way.install_namespace))
        except Unreachable as error:
            raise unreachable_error(error, access) from None
    advice = advise(model_report, program_name())
    _print(model_report, advice, output)
    return PROBLEM if advice.is_problem else OK


async def _print_all(api: KubeApi, way: ClusterOptions, output: OutputFormat, clock: Clock) -> int:
    """Prints every visible model without its pods and engines, which need ``status NAME``."""
    models = await _models(api, way.namespace)
    now, _ = await read_server_clock(api, clock)
    reports = [build_report(ModelFacts(model, (), (), MissingValue("not asked"), now)) for model in models]
    advices = [advise(model, program_name()) for model in reports]
    if is_document(output):
        plain = [to_plain(model, advice) for model, advice in zip(reports, advices, strict=True)]
        print(format_document(plain, output))
    elif not models:
        where = f" in {way.namespace}" if way.namespace else ""
        print(f"there is no ModelDeployment{where}; examples/ has some to begin with", file=sys.stderr)
    else:
        print(terminal_text(render_table(models, now, is_wide=output == "wide")))
    failing = [model.key for model, advice in zip(reports, advices, strict=True) if advice.is_problem]
    if failing and not is_document(output):
        namespace, _, name = failing[0].partition("/")
        print(f"\nnext: {program_name()} status {name} -n {namespace}", file=sys.stderr)
    return PROBLEM if failing else OK


async def _models(api: KubeApi, namespace: str | None) -> Sequence[Manifest]:
    """Returns the models sorted by namespace and name.

    Raises ClusterUnreachable when the cluster does not know the kind, BadInput when the user may
    not list it.
    """
    try:
        models = (await api.list(MODEL_DEPLOYMENTS, namespace)).items
    except NotFound:
        raise ClusterUnreachable(
            f"the cluster {api.config.server} knows no ModelDeployments",
            hint=f"install Fairlead there (`{program_name()} check --pre` shows whether the cluster is ready for it), "
            "or choose another context with --context",
        ) from None
    except Forbidden as error:
        where = f"in {namespace}" if namespace else "in all namespaces"
        raise BadInput(
            f"you may not list ModelDeployments {where}", field="--namespace", hint="name a namespace with -n"
        ) from error
    return sorted(models, key=lambda model: (namespace_name(model), name_of(model)))


async def find_model(api: KubeApi, name: str, namespace: str | None) -> Manifest:
    """Returns the model that is called ``name`` or ``namespace/name``.

    Without a namespace, it is the model in the kubeconfig context's namespace, else the only model
    of this name. Raises BadInput with the nearest names.
    """
    given_namespace, _, model_name = name.rpartition("/")
    likely_namespace = given_namespace or namespace or api.config.namespace
    try:
        return await api.get(MODEL_DEPLOYMENTS, likely_namespace, model_name)
    except NotFound:
        pass  # the rest of the cluster is looked at, and whether it knows the kind at all
    except Forbidden as error:
        raise BadInput(
            f"you may not get ModelDeployments in {likely_namespace}", field="MODEL", hint="name a namespace with -n"
        ) from error
    try:
        models = await _models(api, given_namespace or namespace)
    except BadInput:
        raise BadInput(
            f"{likely_namespace} has no ModelDeployment {model_name!r}",
            field="MODEL",
            hint="name its namespace with -n",
        ) from None
    matches = [model for model in models if name_of(model) == model_name]
    if len(matches) == 1 and not given_namespace and namespace is None:
        return matches[0]
    if matches:
        raise BadInput(
            f"several models are called {name!r}",
            field="MODEL",
            hint=f"say which: {', '.join(map(key_of, matches))}",
        )
    similar = (
        closest_matches(model_name, [name_of(model) for model in models])
        or sorted({name_of(model) for model in models})[:5]
    )
    keys = [key_of(model) for model in models if name_of(model) in similar]
    raise BadInput(f"no model is called {name!r}", field="MODEL", hint=f"known: {', '.join(keys) or 'none'}")


async def collect_model_facts(
    api: KubeApi, model: Manifest, clock: Clock, install_namespace: str | None = None
) -> ModelFacts:
    """Returns a model with its pods, their events, and the gateways' reports."""
    (now, _), pods, events, gateways = await asyncio.gather(
        read_server_clock(api, clock),
        list_objects(api, PODS, namespace_name(model), f"{MODEL_LABEL}={name_of(model)}"),
        _events(api, model),
        _gateways(api, install_namespace),
    )
    uids = {uid_of(model)} | (set() if isinstance(pods, MissingValue) else {uid_of(pod) for pod in pods})
    return ModelFacts(model, pods, _related_events(events, uids, model), gateways, now)


async def _events(api: KubeApi, model: Manifest) -> Sequence[Manifest] | MissingValue:
    """Returns the events of the model, the warnings of all pods in its namespace, and the events of
    StatefulSets if the model has groups.
    """
    selectors = [f"regarding.uid={uid_of(model)}", "regarding.kind=Pod,type=Warning"]
    selectors += ["regarding.kind=StatefulSet"] if group_names(model) else []
    found = [list_objects(api, EVENTS, namespace_name(model), fields=one) for one in selectors]
    model_events, *warnings = await asyncio.gather(*found)
    if isinstance(model_events, MissingValue):
        return model_events
    return [*model_events, *(event for one in warnings if not isinstance(one, MissingValue) for event in one)]


def _related_events(
    events: Sequence[Manifest] | MissingValue, uids: set[str], model: Manifest
) -> Sequence[Manifest] | MissingValue:
    """Returns the events about the objects with these UIDs, and about the model's groups.

    Why: events outlive their objects by an hour, and a new object may have the same name.
    """
    if isinstance(events, MissingValue):
        return events
    return [
        event
        for event in events
        if (event.get("regarding") or {}).get("uid") in uids or is_about_group(event, group_names(model))
    ]


async def _gateways(api: KubeApi, install_namespace: str | None) -> Sequence[PodReport] | MissingValue:
    """Returns the report of up to _MAX_GATEWAYS gateway pods, or why none was found."""
    pods = await list_own_objects(api, PODS, install_namespace)
    if isinstance(pods, MissingValue):
        return MissingValue(f"no gateway was found: {pods.reason}")
    gateways = [pod for pod in with_component(pods, GATEWAY) if not is_deleting(pod)][:_MAX_GATEWAYS]
    return await asyncio.gather(*(pod_http.query_gateway(api, pod) for pod in gateways))


def _print(model_report: ModelReport, advice: Advice, output: OutputFormat) -> None:
    if is_document(output):
        print(format_document(to_plain(model_report, advice), output))
        return
    stdout_console().print(
        render_tree(model_report, advice)
    )  # a terminal has a width, and long lines go on below one another


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
