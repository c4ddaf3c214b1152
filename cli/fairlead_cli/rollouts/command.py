"""``fairlead rollout``: from the options to the exit code."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fairlead import units
from fairlead.errors import BadInput
from fairlead.fleet.labels import FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError, NotFound
from fairlead.kube.field_managers import CLI_FIELD_MANAGER
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
from fairlead_cli.cluster.access.connection import connect, local_user, resolve_access
from fairlead_cli.console import terminal_text
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, report_failure
from fairlead_cli.output import OutputFormat, format_document, is_document
from fairlead_cli.rollouts.revisions import (
    RolloutStatus,
    choose_undo_revision,
    pause_patch,
    promote_patch,
    resume_patch,
    rollout_status,
    undo_patch,
    with_author,
)
from fairlead_cli.rollouts.text_output import render_status, to_plain
from fairlead_cli.target import ClusterOptions
from fairlead_operator.object_metadata import controller_uid

_POLL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """Options of ``fairlead rollout``."""

    cluster: ClusterOptions
    action: str
    model: str | None = None
    to: int | None = None
    wait: str | None = None
    output: OutputFormat = "table"


def run(options: RolloutOptions) -> int:
    """Applies the action, prints the status and returns the exit code.

    Raises BadInput for wrong usage, KubeError when the API server refuses.
    """
    seconds = None if options.wait is None else units.parse_duration(options.wait)
    try:
        return asyncio.run(_run(options, resolve_access(options.cluster), seconds))
    except ClusterUnreachable as error:
        return report_failure("rollout", error, UNREACHABLE)


async def _run(asked: RolloutOptions, access: ClusterConfig, seconds: float | None) -> int:
    clock = SystemClock()
    given_namespace, _, given_name = (asked.model or "").rpartition("/")
    namespace = given_namespace or asked.cluster.namespace or access.namespace
    async with connect(access, clock) as (api, _):
        name = given_name or await _only_model_name(api, namespace)
        status = await read_status(api, namespace, name)
        patch = _patch(asked, status)
        if patch is not None:
            await api.patch_merge(MODEL_DEPLOYMENTS, namespace, name, patch, CLI_FIELD_MANAGER)
            status = await read_status(api, namespace, name)
        if seconds is not None:
            status = await wait_until_settled(
                lambda: read_status(api, namespace, name), status, seconds, clock, asyncio.sleep
            )
    if is_document(asked.output):
        print(format_document(to_plain(status), asked.output))
    else:
        print(terminal_text("\n".join(render_status(status, clock.wall(), is_wide=asked.output == "wide"))))
    followed = asked.action == "status" or seconds is not None
    return PROBLEM if followed and not status.is_settled else OK


def _patch(asked: RolloutOptions, status: RolloutStatus) -> Manifest | None:
    if asked.action == "pause":
        return with_author(pause_patch(), local_user())
    if asked.action == "resume":
        return with_author(resume_patch(), local_user())
    if asked.action == "promote":
        return with_author(promote_patch(status), local_user())
    if asked.action == "undo":
        return with_author(undo_patch(status, choose_undo_revision(status, asked.to)), local_user())
    return None


async def wait_until_settled(
    read: Callable[[], Awaitable[RolloutStatus]],
    status: RolloutStatus,
    seconds: float,
    clock: Clock,
    sleep: Callable[[float], Awaitable[object]],
) -> RolloutStatus:
    """Returns the first settled status, or the last one when the time is over."""
    end = clock.now() + seconds
    while not status.is_settled and clock.now() < end:
        await sleep(min(_POLL_SECONDS, max(0.0, end - clock.now())))
        status = await read()
    return status


async def _only_model_name(api: KubeApi, namespace: str) -> str:
    """Returns the name of the only model. Raises BadInput when there is none, or several."""
    names = sorted(name_of(model) for model in (await api.list(MODEL_DEPLOYMENTS, namespace)).items)
    if len(names) == 1:
        return names[0]
    hint = f"there are {', '.join(names[:5])}" if names else "there is none; -n names another namespace"
    raise BadInput(f"name a model of the namespace {namespace}", field="MODEL", hint=hint)


async def read_status(api: KubeApi, namespace: str, name: str) -> RolloutStatus:
    """Returns the status of a model. Raises BadInput when there is no model of this name."""
    try:
        model = await api.get(MODEL_DEPLOYMENTS, namespace, name)
    except NotFound:
        listed = await api.list(MODEL_DEPLOYMENTS, namespace)
        names = [name_of(found) for found in listed.items]
        suggestions = closest_matches(name, names) or sorted(names)
        hint = f"known: {', '.join(suggestions[:5]) or 'none'}; -n names another namespace"
        raise BadInput(f"no model {namespace}/{name}", field="MODEL", hint=hint) from None
    labels = label_selector({MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: name})
    records = (await api.list(CONTROLLER_REVISIONS, namespace, labels)).items
    workloads = (await api.list(DEPLOYMENTS, namespace, labels)).items + await _groups(api, namespace, labels)
    own = [[found for found in listed if controller_uid(found) == uid_of(model)] for listed in (records, workloads)]
    return rollout_status(model, *own)


async def _groups(api: KubeApi, namespace: str, labels: str) -> list[Manifest]:
    """Returns LeaderWorkerSets, or none when the cluster does not serve them or forbids to list
    them.
    """
    try:
        found = await api.list(LEADER_WORKER_SETS, namespace, labels)
    except KubeError as error:
        if error.status in (403, 404):
            return []
        raise
    return found.items
