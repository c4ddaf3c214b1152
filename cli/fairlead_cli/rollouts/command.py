"""``fairlead rollout``: follows, pauses, resumes, undoes and promotes the rollout of a model.

The verbs write one field and one annotation of the ModelDeployment. kubectl can write them too, as
the operator's guide shows.

Status and patches are pure; the operator's own code chooses the revision.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from cyclopts import Parameter

from fairlead import units
from fairlead.errors import BadInput
from fairlead.fleet.labels import FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL, SURGE_ANNOTATION
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError, NotFound
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, CLI_FIELD_MANAGER
from fairlead.kube.resources import (
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    Manifest,
    key_of,
    label_selector,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead.names import closest_matches
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli.cluster.access.connection import connect, local_user, resolve_access
from fairlead_cli.cluster.object_fields import is_condition_true
from fairlead_cli.console import terminal_text
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, ClusterUnreachable, report_failure
from fairlead_cli.formatting import align_columns
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ClusterOptions, ContextFlag, KubeconfigFlag, ModelFlag, NamespaceFlag
from fairlead_operator.controller.revisions import (
    ModelRevision,
    RevisionChoice,
    choose_revision,
    running_hashes,
    stored_revisions,
)
from fairlead_operator.object_metadata import MODEL_REVISION_ANNOTATION, UNDO_ANNOTATION, annotation, controller_uid

_POLL_SECONDS: Final = 1.0

_CHANGES: Final = 3
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))


@dataclass(frozen=True, slots=True)
class RevisionEntry:
    """A revision of a model. ``created`` is the API server's timestamp, empty while the revision is
    not stored.
    """

    revision: ModelRevision
    created: str
    changed_fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """Rollout status of a model. ``revisions``: newest first. ``is_settled``: every instance has
    the running revision and is ready.
    """

    model: Manifest
    choice: RevisionChoice
    revisions: tuple[RevisionEntry, ...]
    is_paused: bool
    is_settled: bool


def summarize_rollout(model: Manifest, records: Sequence[Manifest], workloads: Sequence[Manifest]) -> RolloutStatus:
    """Returns the status from a model, its ControllerRevisions and its workloads."""
    stored = stored_revisions(records)
    choice = choose_revision(model, stored, running_hashes(workloads))
    hashes = {revision.hash for revision in stored}
    known_revisions = stored if choice.current.hash in hashes else (*stored, choice.current)
    times = {
        _number(revision): str(metadata_of(revision).get("creationTimestamp") or "")
        for revision in records
        if annotation(revision, MODEL_REVISION_ANNOTATION)
    }
    entries = [
        RevisionEntry(
            revision,
            times.get(revision.number, ""),
            changed_fields(known_revisions[position - 1].spec, revision.spec) if position else (),
        )
        for position, revision in enumerate(known_revisions)
    ]
    paused = bool(((model.get("spec") or {}).get("rollout") or {}).get("paused"))
    settled = _settled(model, choice) and _replaced(workloads, choice)
    return RolloutStatus(model, choice, tuple(reversed(entries)), paused, settled)


def choose_undo_revision(status: RolloutStatus, to: int | None) -> ModelRevision:
    """Returns the revision that an undo selects: ``to``, or the one before the running revision.

    While a canary is under way, that is the running one: the canary ends.

    Raises BadInput when the rollout is paused, no such revision is stored, or an undo would have no
    effect.
    """
    name, running, present = key_of(status.model), status.choice.revision, status.choice.current
    if status.is_paused:
        raise BadInput(
            f"the rollout of {name} is paused, and an undo would wait as well",
            field="pause",
            hint="run `fairlead rollout resume` first",
        )
    if is_canary_under_way(status) and to in (None, running.number):
        return running  # the canary ends
    stored = {entry.revision.number: entry.revision for entry in status.revisions}
    earlier = sorted(number for number in stored if number < running.number)
    if to is None and not earlier:
        raise BadInput(f"no revision of {name} before {running.number} is stored", field="--to", hint=_there(stored))
    number = earlier[-1] if to is None else to
    if number not in stored:
        raise BadInput(f"--to: revision {number} of {name} is not stored", field="--to", hint=_there(stored))
    if number == running.number:
        raise BadInput(f"--to: revision {number} of {name} runs already", field="--to", hint=_there(stored))
    if number == present.number:
        raise BadInput(
            f"--to: revision {number} is what the spec of {name} says",
            field="--to",
            hint="`fairlead rollout resume` runs it",
        )
    return stored[number]


def is_canary_under_way(status: RolloutStatus) -> bool:
    return status.choice.canary is not None and status.choice.is_pending


def promote_patch(status: RolloutStatus) -> Manifest:
    """Returns the patch that runs the spec without a canary, until the spec changes again.

    Raises BadInput when the spec runs already, or waits for something else.
    """
    name, choice = key_of(status.model), status.choice
    if not choice.is_pending:
        raise BadInput(f"revision {choice.current.number}, the spec of {name}, runs already", field="promote")
    if status.is_paused:
        raise BadInput(
            f"the rollout of {name} is paused, and a promotion would wait as well",
            field="promote",
            hint="run `fairlead rollout resume` first",
        )
    number = choice.current.number
    return {"metadata": {"annotations": {UNDO_ANNOTATION: f"{number}/{number}"}}}


def pause_patch() -> Manifest:
    return {"spec": {"rollout": {"paused": True}}}


def resume_patch() -> Manifest:
    return {"metadata": {"annotations": {UNDO_ANNOTATION: None}}, "spec": {"rollout": {"paused": False}}}


def undo_patch(status: RolloutStatus, revision: ModelRevision) -> Manifest:
    return {"metadata": {"annotations": {UNDO_ANNOTATION: f"{revision.number}/{status.choice.current.number}"}}}


def with_author(patch: Manifest, author: str) -> Manifest:
    """Returns a patch that also says who made it, for the audit records of the operator."""
    metadata = patch.get("metadata") or {}
    annotations = {**(metadata.get("annotations") or {}), CHANGED_BY_ANNOTATION: author}
    return {**patch, "metadata": {**metadata, "annotations": annotations}}


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the changed fields that affect engines, such as ``engine.args`` and
    ``pools[main].template``; no deeper.
    """
    found: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new or name in ("replicas", "autoscaling", "slo", "routing"):
            continue
        if name == "rollout":
            drains = {(part or {}).get("drainTimeout") for part in (old, new)}
            found += ["rollout.drainTimeout"] if len(drains) > 1 else []
        elif name == "pools":
            found += _pools(old or [], new or [])
        elif isinstance(old, dict) and isinstance(new, dict):
            found += [
                f"{name}.{field}" for field in sorted(old.keys() | new.keys()) if old.get(field) != new.get(field)
            ]
        else:
            found.append(name)
    return tuple(found)


def _pools(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    olds, news = ({str(old.get("name", "main")): old for old in specs} for specs in (before, after))
    found = []
    for name in sorted(olds.keys() | news.keys()):
        old, new = olds.get(name), news.get(name)
        if old is None or new is None:
            found.append(f"pools[{name}]")
            continue
        fields = sorted((old.keys() | new.keys()) - {"minReplicas", "maxReplicas"})
        found += [f"pools[{name}].{field}" for field in fields if old.get(field) != new.get(field)]
    return found


def _settled(model: Manifest, choice: RevisionChoice) -> bool:
    """Whether the operator has observed this spec, nothing is in progress, and all instances are
    ready.
    """
    status = model.get("status") or {}
    if int(status.get("observedGeneration") or 0) < int(metadata_of(model).get("generation") or 0):
        return False
    is_in_progress = is_condition_true(model, "Reconciling") or is_condition_true(model, "Stalled")
    return is_condition_true(model, "Ready") and not is_in_progress and not choice.problem


def _replaced(workloads: Sequence[Manifest], choice: RevisionChoice) -> bool:
    """Whether all workloads run the chosen revision and have replaced their instances.

    Why: an undo is an annotation and changes no generation, so the status may still describe the
    state before the undo.
    """
    return all(
        annotation(workload, MODEL_REVISION_ANNOTATION) == choice.revision.hash and _done(workload)
        for workload in workloads
    )


def _done(workload: Manifest) -> bool:
    status, desired = workload.get("status") or {}, (workload.get("spec") or {}).get("replicas")
    counts = {name: int(status.get(name) or 0) for name in ("replicas", "updatedReplicas", "readyReplicas")}
    if desired is not None and set(counts.values()) != {int(desired)}:
        return False
    if annotation(workload, SURGE_ANNOTATION):
        return False
    if workload.get("kind") == LEADER_WORKER_SETS.kind:  # it does not count its generations
        return not any(is_condition_true(workload, kind) for kind in ("Progressing", "UpdateInProgress"))
    return int(status.get("observedGeneration") or 0) >= int(metadata_of(workload).get("generation") or 0)


def _there(kept: Mapping[int, ModelRevision]) -> str:
    return f"there are: {', '.join(map(str, sorted(kept))) or 'none yet'}"


def _number(record: Manifest) -> int:
    return int(record.get("revision") or 0)


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
        return report_failure(error, UNREACHABLE)


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
