"""``fairlead status`` of a cluster, from its arguments to its exit code."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from fairlead.errors import BadInput
from fairlead.fleet.labels import MODEL_LABEL
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, NotFound, Unreachable
from fairlead.kube.resources import EVENTS, MODEL_DEPLOYMENTS, PODS, Manifest, is_deleting, name_of
from fairlead.names import closest_matches
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.access.connection import ClusterOptions, connect, resolve_access, unreachable_error
from fairlead_cli.cluster.components import GATEWAY, with_component
from fairlead_cli.cluster.facts_collector import list_objects, list_own_objects, read_server_clock
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import namespace_name, object_key
from fairlead_cli.cluster.pod_http import PodReport
from fairlead_cli.cluster.status.advice import ModelAdvice, advise
from fairlead_cli.cluster.status.model_report import ModelFacts, ModelReport, build_report
from fairlead_cli.cluster.status.tree import render_table, render_tree, to_json, to_plain
from fairlead_cli.console import program_name, stdout_console
from fairlead_cli.errors import ClusterUnreachable

OK, PROBLEM, UNREACHABLE = 0, 1, 3
_MAX_EVENTS: Final = 500
"""Events read of a model and its pods; the API server keeps an hour of them."""
_MAX_GATEWAYS: Final = 8


def run(model: str | None, options: ClusterOptions, output: str) -> int:
    """Gather, report, print. Raises BadInput for a model that is not there."""
    try:
        return asyncio.run(_run(model, options, output, SystemClock()))
    except ClusterUnreachable as error:
        print(f"fairlead status: {error}", file=sys.stderr)
        return UNREACHABLE


async def _run(model: str | None, way: ClusterOptions, output: str, clock: Clock) -> int:
    access = resolve_access(way)
    async with connect(access) as (api, _):
        try:
            if model is None:
                return await _print_all(api, way, output, clock)
            found = build_report(await collect_model_facts(api, await find_model(api, model, way.namespace), clock))
        except Unreachable as error:
            raise unreachable_error(error, access) from None
    advice = advise(found, program_name())
    _print(found, advice, output)
    return PROBLEM if advice.is_problem else OK


async def _print_all(api: KubeApi, way: ClusterOptions, output: str, clock: Clock) -> int:
    """Every model that we may see. Its pods and engines are not asked: that is ``status NAME``."""
    models = await _models(api, way.namespace)
    now, _ = await read_server_clock(api, clock)
    reports = [build_report(ModelFacts(one, (), (), MissingValue("not asked"), now)) for one in models]
    advices = [advise(one, program_name()) for one in reports]
    if output == "json":
        print(to_json([to_plain(one, advice) for one, advice in zip(reports, advices, strict=True)]))
    elif not models:
        where = f" in {way.namespace}" if way.namespace else ""
        print(f"there is no ModelDeployment{where}; examples/ has some to begin with", file=sys.stderr)
    else:
        print(render_table(models, now))
    wrong = [one.key for one, advice in zip(reports, advices, strict=True) if advice.is_problem]
    if wrong and output != "json":
        namespace, _, name = wrong[0].partition("/")
        print(f"\nnext: {program_name()} status {name} -n {namespace}", file=sys.stderr)
    return PROBLEM if wrong else OK


async def _models(api: KubeApi, namespace: str | None) -> Sequence[Manifest]:
    """Sorted by namespace and name. Raises NoCluster for a cluster without the kind, BadInput when we may not look."""
    try:
        found = (await api.list(MODEL_DEPLOYMENTS, namespace)).items
    except NotFound:
        raise ClusterUnreachable(
            f"the cluster {api.config.server} knows no ModelDeployments",
            hint=f"install Fairlead there, `{program_name()} check --pre` says whether it can be; or choose another by --context",
        ) from None
    except Forbidden as error:
        where = f"in {namespace}" if namespace else "in all namespaces"
        raise BadInput(
            f"you may not list ModelDeployments {where}", field="--namespace", hint="name a namespace with -n"
        ) from error
    return sorted(found, key=lambda one: (namespace_name(one), name_of(one)))


async def find_model(api: KubeApi, name: str, namespace: str | None) -> Manifest:
    """``name`` or ``namespace/name``: in the namespace that is given, in that of the context, else where there is only one.

    Raises BadInput that names the nearest models.
    """
    before, _, after = name.rpartition("/")
    first = before or namespace or api.config.namespace
    try:
        return await api.get(MODEL_DEPLOYMENTS, first, after)
    except NotFound:
        pass  # the rest of the cluster is looked at, and whether it knows the kind at all
    except Forbidden as error:
        raise BadInput(
            f"you may not get ModelDeployments in {first}", field="MODEL", hint="name a namespace with -n"
        ) from error
    try:
        models = await _models(api, before or namespace)
    except BadInput:
        raise BadInput(
            f"{first} has no ModelDeployment {after!r}", field="MODEL", hint="name its namespace with -n"
        ) from None
    same = [one for one in models if name_of(one) == after]
    if len(same) == 1 and not before and namespace is None:
        return same[0]
    if same:
        raise BadInput(
            f"several models are called {name!r}", field="MODEL", hint=f"say which: {', '.join(map(object_key, same))}"
        )
    close = closest_matches(after, [name_of(one) for one in models]) or sorted({name_of(one) for one in models})[:5]
    there = [object_key(one) for one in models if name_of(one) in close]
    raise BadInput(f"no model is called {name!r}", field="MODEL", hint=f"there is: {', '.join(there) or 'none'}")


async def collect_model_facts(api: KubeApi, model: Manifest, clock: Clock) -> ModelFacts:
    """A model with its pods, their events, and what gateways say."""
    (now, _), pods, events, gateways = await asyncio.gather(
        read_server_clock(api, clock),
        list_objects(api, PODS, namespace_name(model), f"{MODEL_LABEL}={name_of(model)}"),
        _events(api, model),
        _gateways(api),
    )
    names = set() if isinstance(pods, MissingValue) else {name_of(one) for one in pods}
    return ModelFacts(model, pods, _related_events(events, names), gateways, now)


async def _events(api: KubeApi, model: Manifest) -> Sequence[Manifest] | MissingValue:
    """Of the model, and warnings of the namespace's pods; which of these are its own is seen later."""
    own = f"regarding.kind=ModelDeployment,regarding.name={name_of(model)}"
    about, warnings = await asyncio.gather(
        list_objects(api, EVENTS, namespace_name(model), fields=own),
        list_objects(api, EVENTS, namespace_name(model), fields="regarding.kind=Pod,type=Warning"),
    )
    if isinstance(about, MissingValue):
        return about
    return [*about[-_MAX_EVENTS:], *(() if isinstance(warnings, MissingValue) else warnings[-_MAX_EVENTS:])]


def _related_events(events: Sequence[Manifest] | MissingValue, pods: set[str]) -> Sequence[Manifest] | MissingValue:
    if isinstance(events, MissingValue):
        return events
    return [
        one
        for one in events
        if (one.get("regarding") or {}).get("kind") != "Pod" or (one.get("regarding") or {}).get("name") in pods
    ]


async def _gateways(api: KubeApi) -> Sequence[PodReport] | MissingValue:
    """What each gateway's metrics say."""
    pods = await list_own_objects(api, PODS, None)
    if isinstance(pods, MissingValue):
        return MissingValue(f"no gateway was found: {pods.reason}")
    found = [one for one in with_component(pods, GATEWAY) if not is_deleting(one)][:_MAX_GATEWAYS]
    return await asyncio.gather(*(pod_http.query_gateway(api, one) for one in found))


def _print(found: ModelReport, advice: ModelAdvice, output: str) -> None:
    if output == "json":
        print(to_json(to_plain(found, advice)))
        return
    stdout_console().print(render_tree(found, advice))  # a terminal has a width, and long lines go on below one another
