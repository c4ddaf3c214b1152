"""``fairlead rollout``, from its arguments to its exit code."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fairlead import units
from fairlead.clock import Clock, SystemClock
from fairlead.cluster_labels import MANAGED_BY, MANAGER, MODEL
from fairlead.errors import BadInput
from fairlead.kube.access import Access
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError, NotFound
from fairlead.kube.resource import (
    DEPLOYMENTS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    REVISIONS,
    Manifest,
    name_of,
    selector,
    uid_of,
)
from fairlead.names import nearest
from fairlead_cli.cluster.way import Way, find, opened
from fairlead_cli.errors import NoCluster
from fairlead_cli.rollouts.deciding import Standing, pausing, resuming, standing, undoing, undone
from fairlead_cli.rollouts.telling import lines
from fairlead_operator.marks import owner_uid

WRITER: Final = "fairlead-cli"
"""The field manager of what people write by this command."""
OK, PROBLEM, UNREACHABLE = 0, 1, 3
_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed."""

    way: Way
    action: str
    model: str | None = None
    to: int | None = None
    wait: str | None = None


def run(asked: Asked) -> int:
    """Do it, print how it stands, judge. Raises BadInput for wrong usage, KubeError for what the API server refuses."""
    if asked.to is not None and asked.action != "undo":
        raise BadInput("--to says what an undo runs", field="--to", hint="fairlead rollout undo MODEL --to N")
    seconds = None if asked.wait is None else units.seconds(asked.wait)
    try:
        return asyncio.run(_done(asked, find(asked.way), seconds))
    except NoCluster as error:
        print(f"fairlead rollout: {error}", file=sys.stderr)
        return UNREACHABLE


async def _done(asked: Asked, access: Access, seconds: float | None) -> int:
    clock, namespace = SystemClock(), asked.way.namespace or access.namespace
    async with opened(access, clock) as (api, _):
        name = asked.model or await _only(api, namespace)
        found = await look(api, namespace, name)
        patch = _patch(asked, found)
        if patch is not None:
            await api.patch_merge(MODEL_DEPLOYMENTS, namespace, name, patch, WRITER)
            found = await look(api, namespace, name)
        if seconds is not None:
            found = await settled(lambda: look(api, namespace, name), found, seconds, clock, asyncio.sleep)
    for line in lines(found, clock.wall()):
        print(line)
    followed = asked.action == "status" or seconds is not None
    return PROBLEM if followed and not found.settled else OK


def _patch(asked: Asked, found: Standing) -> Manifest | None:
    if asked.action == "pause":
        return pausing()
    if asked.action == "resume":
        return resuming()
    return undoing(found, undone(found, asked.to)) if asked.action == "undo" else None


async def settled(
    again: Callable[[], Awaitable[Standing]],
    found: Standing,
    seconds: float,
    clock: Clock,
    pause: Callable[[float], Awaitable[object]],
) -> Standing:
    """The first look that finds it settled, or the last one in that time."""
    end = clock.now() + seconds
    while not found.settled and clock.now() < end:
        await pause(min(_LOOK_SECONDS, max(0.0, end - clock.now())))
        found = await again()
    return found


async def _only(api: KubeApi, namespace: str) -> str:
    """The name of the only model there. Raises BadInput where there is none, or several."""
    known = sorted(name_of(one) for one in (await api.list(MODEL_DEPLOYMENTS, namespace)).items)
    if len(known) == 1:
        return known[0]
    told = f"there are {', '.join(known[:5])}" if known else "there is none; another namespace is named by --namespace"
    raise BadInput(f"which model of {namespace}?", field="MODEL", hint=told)


async def look(api: KubeApi, namespace: str, name: str) -> Standing:
    """How the model stands now. Raises BadInput where there is none of this name."""
    try:
        model = await api.get(MODEL_DEPLOYMENTS, namespace, name)
    except NotFound:
        listed = await api.list(MODEL_DEPLOYMENTS, namespace)
        known = [name_of(one) for one in listed.items]
        close = nearest(name, known) or sorted(known)
        hint = f"there is: {', '.join(close[:5]) or 'none'}; another namespace is named by --namespace"
        raise BadInput(f"no model {namespace}/{name}", field="MODEL", hint=hint) from None
    labels = selector({MANAGED_BY: MANAGER, MODEL: name})
    records = (await api.list(REVISIONS, namespace, labels)).items
    workloads = (await api.list(DEPLOYMENTS, namespace, labels)).items + await _groups(api, namespace, labels)
    own = [[one for one in listed if owner_uid(one) == uid_of(model)] for listed in (records, workloads)]
    return standing(model, *own)


async def _groups(api: KubeApi, namespace: str, labels: str) -> list[Manifest]:
    """LeaderWorkerSets, where the cluster knows them and lets us look."""
    try:
        found = await api.list(LEADER_WORKER_SETS, namespace, labels)
    except KubeError as error:
        if error.status in (403, 404):
            return []
        raise
    return found.items
