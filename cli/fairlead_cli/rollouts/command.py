"""``fairlead rollout``, from its arguments to its exit code."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fairlead import units
from fairlead.errors import BadInput
from fairlead.fleet.labels import FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError, NotFound
from fairlead.kube.resources import (
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    Manifest,
    label_selector,
    name_of,
    uid_of,
)
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.names import closest_matches
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli.cluster.access.connection import ClusterOptions, connect, resolve_access
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.rollouts.revisions import (
    RolloutStatus,
    choose_undo_revision,
    pause_patch,
    resume_patch,
    rollout_status,
    undo_patch,
)
from fairlead_cli.rollouts.text_output import render_status
from fairlead_operator.object_metadata import controller_uid

CLI_CLI_FIELD_MANAGER: Final = "fairlead-cli"
"""The field manager of what people write by this command."""
OK, PROBLEM, UNREACHABLE = 0, 1, 3
_POLL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """What was typed."""

    cluster: ClusterOptions
    action: str
    model: str | None = None
    to: int | None = None
    wait: str | None = None


def run(options: RolloutOptions) -> int:
    """Do it, print how it stands, judge. Raises BadInput for wrong usage, KubeError for what the API server refuses."""
    if options.to is not None and options.action != "undo":
        raise BadInput("--to says what an undo runs", field="--to", hint="fairlead rollout undo MODEL --to N")
    seconds = None if options.wait is None else units.parse_duration(options.wait)
    try:
        return asyncio.run(_run(options, resolve_access(options.cluster), seconds))
    except ClusterUnreachable as error:
        print(f"fairlead rollout: {error}", file=sys.stderr)
        return UNREACHABLE


async def _run(asked: RolloutOptions, access: ClusterConfig, seconds: float | None) -> int:
    clock, namespace = SystemClock(), asked.cluster.namespace or access.namespace
    async with connect(access, clock) as (api, _):
        name = asked.model or await _only_model_name(api, namespace)
        found = await read_status(api, namespace, name)
        patch = _patch(asked, found)
        if patch is not None:
            await api.patch_merge(MODEL_DEPLOYMENTS, namespace, name, patch, CLI_CLI_FIELD_MANAGER)
            found = await read_status(api, namespace, name)
        if seconds is not None:
            found = await wait_until_settled(
                lambda: read_status(api, namespace, name), found, seconds, clock, asyncio.sleep
            )
    for line in render_status(found, clock.wall()):
        print(line)
    followed = asked.action == "status" or seconds is not None
    return PROBLEM if followed and not found.is_settled else OK


def _patch(asked: RolloutOptions, found: RolloutStatus) -> Manifest | None:
    if asked.action == "pause":
        return pause_patch()
    if asked.action == "resume":
        return resume_patch()
    return undo_patch(found, choose_undo_revision(found, asked.to)) if asked.action == "undo" else None


async def wait_until_settled(
    read: Callable[[], Awaitable[RolloutStatus]],
    found: RolloutStatus,
    seconds: float,
    clock: Clock,
    sleep: Callable[[float], Awaitable[object]],
) -> RolloutStatus:
    """The first look that finds it settled, or the last one in that time."""
    end = clock.now() + seconds
    while not found.is_settled and clock.now() < end:
        await sleep(min(_POLL_SECONDS, max(0.0, end - clock.now())))
        found = await read()
    return found


async def _only_model_name(api: KubeApi, namespace: str) -> str:
    """The name of the only model there. Raises BadInput where there is none, or several."""
    known = sorted(name_of(one) for one in (await api.list(MODEL_DEPLOYMENTS, namespace)).items)
    if len(known) == 1:
        return known[0]
    told = f"there are {', '.join(known[:5])}" if known else "there is none; another namespace is named by --namespace"
    raise BadInput(f"which model of {namespace}?", field="MODEL", hint=told)


async def read_status(api: KubeApi, namespace: str, name: str) -> RolloutStatus:
    """How the model stands now. Raises BadInput where there is none of this name."""
    try:
        model = await api.get(MODEL_DEPLOYMENTS, namespace, name)
    except NotFound:
        listed = await api.list(MODEL_DEPLOYMENTS, namespace)
        known = [name_of(one) for one in listed.items]
        close = closest_matches(name, known) or sorted(known)
        hint = f"there is: {', '.join(close[:5]) or 'none'}; another namespace is named by --namespace"
        raise BadInput(f"no model {namespace}/{name}", field="MODEL", hint=hint) from None
    labels = label_selector({MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: name})
    records = (await api.list(CONTROLLER_REVISIONS, namespace, labels)).items
    workloads = (await api.list(DEPLOYMENTS, namespace, labels)).items + await _groups(api, namespace, labels)
    own = [[one for one in listed if controller_uid(one) == uid_of(model)] for listed in (records, workloads)]
    return rollout_status(model, *own)


async def _groups(api: KubeApi, namespace: str, labels: str) -> list[Manifest]:
    """LeaderWorkerSets, where the cluster knows them and lets us look."""
    try:
        found = await api.list(LEADER_WORKER_SETS, namespace, labels)
    except KubeError as error:
        if error.status in (403, 404):
            return []
        raise
    return found.items
