"""``fairlead rollout``: follows, pauses, resumes, undoes and promotes the rollout of a model.

The verbs write one field and one annotation of the ModelDeployment. kubectl can write them too, as
the operator's guide shows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from cyclopts import Parameter

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
    key_of,
    label_selector,
    name_of,
    uid_of,
)
from fairlead.names import closest_matches
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli.cluster.access.connection import connect, local_user, resolve_access
from fairlead_cli.console import terminal_text
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, ClusterUnreachable, report_failure
from fairlead_cli.formatting import align_columns
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.rollouts.revisions import (
    RevisionEntry,
    RolloutStatus,
    choose_undo_revision,
    pause_patch,
    promote_patch,
    resume_patch,
    summarize_rollout,
    undo_patch,
    with_author,
)
from fairlead_cli.target import ClusterOptions, ContextFlag, KubeconfigFlag, ModelFlag, NamespaceFlag
from fairlead_operator.object_metadata import controller_uid

_POLL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RolloutFlags:
    """The flags of all verbs of a rollout."""

    wait: Annotated[
        str | None,
        Parameter(help="Wait until all instances have the running revision, for at most this long, such as 10m."),
    ] = None
    namespace: NamespaceFlag = None
    context: ContextFlag = None
    kubeconfig: KubeconfigFlag = None
    output: OutputFlag = "table"


_Flags = Annotated[RolloutFlags, Parameter(name="*")]
_DEFAULTS = RolloutFlags()


def rollout_status(model: ModelFlag = None, *, flags: _Flags = _DEFAULTS) -> int:
    """Show which revision of a model runs, how far it is, and which revisions are stored.

    Exits 0 when every instance has the running revision and is ready, and 1 until then. Exits 2 on
    wrong usage, 3 when no API server can be reached.
    """
    return _run("status", model, flags)


def rollout_pause(model: ModelFlag = None, *, flags: _Flags = _DEFAULTS) -> int:
    """Pause the rollouts of a model: changes of its spec wait; numbers of instances still follow.

    Exits 0 when done, 1 when --wait ended first, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    return _run("pause", model, flags)


def rollout_resume(model: ModelFlag = None, *, flags: _Flags = _DEFAULTS) -> int:
    """Run what the spec of a model says. This ends a pause and an undo.

    Exits 0 when done, 1 when --wait ended first, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    return _run("resume", model, flags)


def rollout_undo(
    model: ModelFlag = None,
    *,
    to: Annotated[int | None, Parameter(help="The revision to run. Default: the one before what runs.")] = None,
    flags: _Flags = _DEFAULTS,
) -> int:
    """Run an earlier revision of a model, or end its canary. The spec stays as it is.

    Exits 0 when done, 1 when --wait ended first, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    return _run("undo", model, flags, to)


def rollout_promote(model: ModelFlag = None, *, flags: _Flags = _DEFAULTS) -> int:
    """Run what the spec of a model says on all instances, without a canary or in spite of one.

    Exits 0 when done, 1 when --wait ended first, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    return _run("promote", model, flags)


def _run(action: str, model: str | None, flags: RolloutFlags, to: int | None = None) -> int:
    seconds = None if flags.wait is None else units.parse_duration(flags.wait)
    try:
        return asyncio.run(_apply(action, model, flags, to, seconds))
    except ClusterUnreachable as error:
        return report_failure("rollout", error, UNREACHABLE)


async def _apply(action: str, model: str | None, flags: RolloutFlags, to: int | None, seconds: float | None) -> int:
    clock, access = SystemClock(), resolve_access(ClusterOptions(flags.kubeconfig, flags.context, flags.namespace))
    given_namespace, _, given_name = (model or "").rpartition("/")
    namespace = given_namespace or flags.namespace or access.namespace
    async with connect(access, clock) as (api, _):
        name = given_name or await _only_model_name(api, namespace)
        status = await read_status(api, namespace, name)
        patch = _patch(action, to, status)
        if patch is not None:
            await api.patch_merge(MODEL_DEPLOYMENTS, namespace, name, patch, CLI_FIELD_MANAGER)
            status = await read_status(api, namespace, name)
        if seconds is not None:
            status = await wait_until_settled(
                lambda: read_status(api, namespace, name), status, seconds, clock, asyncio.sleep
            )
    if is_document(flags.output):
        print(format_document(to_plain(status), flags.output))
    else:
        print(terminal_text("\n".join(render_status(status, clock.wall(), is_wide=flags.output == "wide"))))
    followed = action == "status" or seconds is not None
    return PROBLEM if followed and not status.is_settled else OK


def _patch(action: str, to: int | None, status: RolloutStatus) -> Manifest | None:
    if action == "pause":
        return with_author(pause_patch(), local_user())
    if action == "resume":
        return with_author(resume_patch(), local_user())
    if action == "promote":
        return with_author(promote_patch(status), local_user())
    if action == "undo":
        return with_author(undo_patch(status, choose_undo_revision(status, to)), local_user())
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
    return summarize_rollout(model, *own)


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


_CHANGES: Final = 3
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))


def to_plain(status: RolloutStatus) -> dict[str, Any]:
    """Returns the complete status for a document."""
    running, present = status.choice.revision.number, status.choice.current.number
    return {
        "model": key_of(status.model),
        "running_revision": running,
        "spec_revision": present,
        "pending_reason": status.choice.reason if status.choice.is_pending else None,
        "problem": status.choice.problem or None,
        "paused": status.is_paused,
        "settled": status.is_settled,
        "conditions": (status.model.get("status") or {}).get("conditions") or [],
        "revisions": [
            {"revision": entry.revision.number, "created": entry.created or None, "changed": entry.changed_fields}
            for entry in status.revisions
        ],
    }


def render_status(status: RolloutStatus, now: float, *, is_wide: bool = False) -> Iterator[str]:
    """Yields the rollout status as lines of text.

    now: Unix time.

    is_wide: all changed fields of each revision.
    """
    choice, model_status = status.choice, status.model.get("status") or {}
    number, present = choice.revision.number, choice.current.number
    headline = f"runs revision {number}"
    yield f"{key_of(status.model)} {headline}" + (f" of {present}: {choice.reason}" if choice.is_pending else "")
    if choice.problem:
        yield f"  cannot be done: {choice.problem}"
    if status.is_paused and not choice.is_pending:
        yield "  paused: nothing waits; the next change will"
    for condition in model_status.get("conditions") or []:
        if condition.get("type") in ("Ready", "Reconciling", "Stalled"):
            holds = "" if condition.get("status") == "True" else "not "
            yield f"  {holds}{str(condition.get('type')).lower()} ({condition.get('reason')}): {condition.get('message')}"
    yield ""
    rows = [_row(entry, (number, present), now, is_wide) for entry in status.revisions]
    yield from align_columns([("REVISION", "AGE", "CHANGED"), *rows], gap="  ").splitlines()


def _row(entry: RevisionEntry, marked: tuple[int, int], now: float, is_wide: bool) -> tuple[str, str, str]:
    """Returns the cells of a revision. ``marked``: numbers of the running one and the spec's."""
    number, (running, present) = entry.revision.number, marked
    shown = len(entry.changed_fields) if is_wide else _CHANGES
    marks = [word for word, holds in (("runs", number == running), ("spec", number == present)) if holds]
    more = len(entry.changed_fields) - shown
    changed = ", ".join(entry.changed_fields[:shown]) + (f" and {more} more" if more > 0 else "")
    return f"{number}{' ' if marks else ''}{', '.join(marks)}", _age(entry.created, now), changed


def _age(created: str, wall: float) -> str:
    if not created:
        return ""
    seconds = max(0, int(wall - datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
