"""``fairlead status`` of a cluster, from its arguments to its exit code."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from fairlead.clock import Clock, SystemClock
from fairlead.cluster_labels import MODEL
from fairlead.errors import BadInput
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, NotFound, Unreachable
from fairlead.kube.resource import EVENTS, MODEL_DEPLOYMENTS, PODS, Manifest, leaving, name_of
from fairlead.names import nearest
from fairlead_cli.cluster import asking
from fairlead_cli.cluster.advice import Advice, advise
from fairlead_cli.cluster.asking import Told
from fairlead_cli.cluster.facts import GATEWAY, of_component
from fairlead_cli.cluster.gathering import items, ours, server_clock
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.model_report import ModelFacts, ModelReport, report
from fairlead_cli.cluster.model_tree import as_json, as_plain, table, tree
from fairlead_cli.cluster.reading import key, space
from fairlead_cli.cluster.way import Way, away, find, opened
from fairlead_cli.errors import NoCluster
from fairlead_cli.local.program import program
from fairlead_cli.paper import paper

OK, PROBLEM, UNREACHABLE = 0, 1, 3
_EVENTS: Final = 500
"""Events read of a model and its pods; the API server keeps an hour of them."""
_GATEWAYS: Final = 8


def run(model: str | None, way: Way, output: str) -> int:
    """Gather, report, print. Raises BadInput for a model that is not there."""
    try:
        return asyncio.run(_run(model, way, output, SystemClock()))
    except NoCluster as error:
        print(f"fairlead status: {error}", file=sys.stderr)
        return UNREACHABLE


async def _run(model: str | None, way: Way, output: str, clock: Clock) -> int:
    access = find(way)
    async with opened(access) as (api, _):
        try:
            if model is None:
                return await _all(api, way, output, clock)
            found = report(await facts_of(api, await chosen(api, model, way.namespace), clock))
        except Unreachable as error:
            raise away(error, access) from None
    advice = advise(found, program())
    _print(found, advice, output)
    return PROBLEM if advice.problem else OK


async def _all(api: KubeApi, way: Way, output: str, clock: Clock) -> int:
    """Every model that we may see. Its pods and engines are not asked: that is ``status NAME``."""
    models = await _models(api, way.namespace)
    now, _ = await server_clock(api, clock)
    reports = [report(ModelFacts(one, (), (), Missing("not asked"), now)) for one in models]
    advices = [advise(one, program()) for one in reports]
    if output == "json":
        print(as_json([as_plain(one, advice) for one, advice in zip(reports, advices, strict=True)]))
    elif not models:
        where = f" in {way.namespace}" if way.namespace else ""
        print(f"there is no ModelDeployment{where}; examples/ has some to begin with", file=sys.stderr)
    else:
        print(table(models, now))
    wrong = [one.key for one, advice in zip(reports, advices, strict=True) if advice.problem]
    if wrong and output != "json":
        namespace, _, name = wrong[0].partition("/")
        print(f"\nnext: {program()} status {name} -n {namespace}", file=sys.stderr)
    return PROBLEM if wrong else OK


async def _models(api: KubeApi, namespace: str | None) -> Sequence[Manifest]:
    """Sorted by namespace and name. Raises NoCluster for a cluster without the kind, BadInput when we may not look."""
    try:
        found = (await api.list(MODEL_DEPLOYMENTS, namespace)).items
    except NotFound:
        raise NoCluster(
            f"the cluster {api.access.server} knows no ModelDeployments",
            hint=f"install Fairlead there, `{program()} check --pre` says whether it can be; or choose another by --context",
        ) from None
    except Forbidden as error:
        where = f"in {namespace}" if namespace else "in all namespaces"
        raise BadInput(
            f"you may not list ModelDeployments {where}", field="--namespace", hint="name a namespace with -n"
        ) from error
    return sorted(found, key=lambda one: (space(one), name_of(one)))


async def chosen(api: KubeApi, name: str, namespace: str | None) -> Manifest:
    """``name`` or ``namespace/name``: in the namespace that is given, in that of the context, else where there is only one.

    Raises BadInput that names the nearest models.
    """
    before, _, after = name.rpartition("/")
    first = before or namespace or api.access.namespace
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
            f"several models are called {name!r}", field="MODEL", hint=f"say which: {', '.join(map(key, same))}"
        )
    close = nearest(after, [name_of(one) for one in models]) or sorted({name_of(one) for one in models})[:5]
    there = [key(one) for one in models if name_of(one) in close]
    raise BadInput(f"no model is called {name!r}", field="MODEL", hint=f"there is: {', '.join(there) or 'none'}")


async def facts_of(api: KubeApi, model: Manifest, clock: Clock) -> ModelFacts:
    """A model with its pods, their events, and what gateways say."""
    (now, _), pods, events, gateways = await asyncio.gather(
        server_clock(api, clock),
        items(api, PODS, space(model), f"{MODEL}={name_of(model)}"),
        _events(api, model),
        _gateways(api),
    )
    names = set() if isinstance(pods, Missing) else {name_of(one) for one in pods}
    return ModelFacts(model, pods, _about(events, names), gateways, now)


async def _events(api: KubeApi, model: Manifest) -> Sequence[Manifest] | Missing:
    """Of the model, and warnings of the namespace's pods; which of these are its own is seen later."""
    own = f"regarding.kind=ModelDeployment,regarding.name={name_of(model)}"
    about, warnings = await asyncio.gather(
        items(api, EVENTS, space(model), fields=own),
        items(api, EVENTS, space(model), fields="regarding.kind=Pod,type=Warning"),
    )
    if isinstance(about, Missing):
        return about
    return [*about[-_EVENTS:], *(() if isinstance(warnings, Missing) else warnings[-_EVENTS:])]


def _about(events: Sequence[Manifest] | Missing, pods: set[str]) -> Sequence[Manifest] | Missing:
    if isinstance(events, Missing):
        return events
    return [
        one
        for one in events
        if (one.get("regarding") or {}).get("kind") != "Pod" or (one.get("regarding") or {}).get("name") in pods
    ]


async def _gateways(api: KubeApi) -> Sequence[Told] | Missing:
    """What each gateway's metrics say."""
    pods = await ours(api, PODS, None)
    if isinstance(pods, Missing):
        return Missing(f"no gateway was found: {pods.why}")
    found = [one for one in of_component(pods, GATEWAY) if not leaving(one)][:_GATEWAYS]
    return await asyncio.gather(*(asking.gateway(api, one) for one in found))


def _print(found: ModelReport, advice: Advice, output: str) -> None:
    if output == "json":
        print(as_json(as_plain(found, advice)))
        return
    paper().print(tree(found, advice))  # a terminal has a width, and long lines go on below one another
