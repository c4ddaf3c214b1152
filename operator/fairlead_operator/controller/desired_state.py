"""Computes the children that a model should have: its revision, parsed and rendered. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from fairlead.api.conditions import Reason
from fairlead.api.v1alpha1 import API_VERSION, AcceleratorClass, ModelDeployment
from fairlead.errors import FairleadError
from fairlead.fleet.labels import POOL_LABEL
from fairlead.kube.resources import MODEL_DEPLOYMENTS, Manifest, metadata_of
from fairlead.manifests.validation_messages import describe_problems
from fairlead_operator.canary.instances import canary_model, is_replaced
from fairlead_operator.canary.progress import parse_state
from fairlead_operator.controller.apply_plan import count_only
from fairlead_operator.controller.group_rollout import apply_rollout
from fairlead_operator.controller.revisions import (
    RevisionChoice,
    choose_revision,
    controller_revision,
    revisions_to_keep,
    running_hashes,
    stored_revisions,
)
from fairlead_operator.kube.object_cache import ModelSnapshot
from fairlead_operator.object_metadata import WORKLOAD_KINDS, label, with_revision
from fairlead_operator.render.context import RenderContext
from fairlead_operator.render.model import RenderedModel
from fairlead_operator.status.diagnosis import Failure

_MAX_REPORTED_PROBLEMS = 3

Render = Callable[[ModelDeployment, Mapping[str, AcceleratorClass], RenderContext], RenderedModel]
"""A function like `render_model`."""


@dataclass(frozen=True, slots=True)
class ChosenSpec:
    """The revision to run. `model` is None if this release cannot read it.

    canary: the model as its canary has it; None without a canary.
    """

    choice: RevisionChoice
    model: ModelDeployment | None
    failure: Failure | None = None
    canary: ModelDeployment | None = None


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The children that a model should have.

    surge_messages: how instances are being replaced, by pool.
    is_complete: False if not every child could be rendered; then nothing is deleted.
    """

    children: tuple[Manifest, ...] = ()
    surge_messages: Mapping[str, str] = field(default_factory=dict)
    failure: Failure | None = None
    is_complete: bool = False


def choose_spec(snapshot: ModelSnapshot) -> ChosenSpec:
    """Returns the revision to run and its parsed model, or why this release cannot read it."""
    children = snapshot.children.values()
    choice = choose_revision(snapshot.model, stored_revisions(children), running_hashes(children))
    failure = Failure(Reason.INVALID_SPEC, choice.problem) if choice.problem else None
    try:
        return ChosenSpec(choice, parse_model(snapshot.model, choice.spec), failure, _canary_of(snapshot, choice))
    except ValidationError as error:
        return ChosenSpec(choice, None, Failure(Reason.INVALID_SPEC, describe_error(error, choice.spec)))


def _canary_of(snapshot: ModelSnapshot, choice: RevisionChoice) -> ModelDeployment | None:
    """Returns the model as its canary has it; None without a canary, or once it has replaced the
    earlier revision. Raises ValidationError.
    """
    children = snapshot.children.values()
    if choice.canary is None or (not choice.is_pending and is_replaced(children, choice.canary.hash)):
        return None
    model = parse_model(snapshot.model, dict(snapshot.model.get("spec") or {}))
    settings, state = model.spec.rollout.canary, parse_state(snapshot.model.get("status") or {})
    weight = 0 if state is None or state.hash != choice.canary.hash else state.weight
    if settings is not None:
        weight = max(weight, settings.steps[0])  # they start before they get conversations
    workloads = [child for child in children if child["kind"] in WORKLOAD_KINDS]
    return canary_model(model, workloads, weight)


def desired_state(snapshot: ModelSnapshot, chosen: ChosenSpec, context: RenderContext, render: Render) -> DesiredState:
    """Returns the desired children of the chosen spec and of its canary, and the failure if some
    cannot be rendered.
    """
    choice, model = chosen.choice, chosen.model
    if model is None:
        return DesiredState(failure=chosen.failure)
    classes = _accelerator_classes(snapshot.accelerators)
    try:
        rendered = render(model, classes, context)
        tried = RenderedModel(()) if chosen.canary is None else render(chosen.canary, classes, context)
    except FairleadError as error:
        return DesiredState(failure=Failure(Reason.INVALID_SPEC, str(error)))
    children, messages = apply_rollout(rendered.manifests, snapshot.children, snapshot.pods, model.spec.rollout)
    tried_children, _ = apply_rollout(tried.manifests, snapshot.children, snapshot.pods, model.spec.rollout)
    marked = _with_revision(children, choice.revision.hash) + _with_revision(tried_children, choice.current.hash)
    if problems := (*rendered.problems, *tried.problems):
        text = "; ".join(problem.message_with_fix for problem in problems[:_MAX_REPORTED_PROBLEMS])
        counts = _counts_only(snapshot, model, {problem.pool for problem in rendered.problems})
        return DesiredState((*marked, *counts), messages, Failure(problems[0].reason, text))
    kept = revisions_to_keep(stored_revisions(snapshot.children.values()), choice)
    records = [controller_revision(snapshot.model, revision) for revision in kept]
    return DesiredState((*records, *marked), messages, is_complete=True)


def _counts_only(snapshot: ModelSnapshot, model: ModelDeployment, pools: Set[str | None]) -> Iterator[Manifest]:
    """Yields the numbers of instances of `pools`, which cannot be rendered and run."""
    desired = {pool.name: model.spec.desired_instances(pool) for pool in model.spec.pools if pool.name in pools}
    for child in snapshot.children.values():
        if child["kind"] in WORKLOAD_KINDS and (pool := label(child, POOL_LABEL)) in desired:
            yield count_only(child, desired[pool])


def _with_revision(children: Iterable[Manifest], hash: str) -> list[Manifest]:
    return [with_revision(child, hash) if child["kind"] in WORKLOAD_KINDS else child for child in children]


def parse_model(model: Manifest, spec: Mapping[str, Any]) -> ModelDeployment:
    """Returns the model with `spec`. Raises ValidationError."""
    metadata = {name: metadata_of(model).get(name) for name in ("name", "namespace", "uid", "labels", "annotations")}
    known = {name: value for name, value in metadata.items() if value is not None}
    return ModelDeployment.model_validate(
        {"apiVersion": API_VERSION, "kind": MODEL_DEPLOYMENTS.kind, "metadata": known, "spec": spec}
    )


def describe_error(error: ValidationError, spec: Mapping[str, Any]) -> str:
    return describe_problems(error, ModelDeployment, {"spec": spec}, most=3)


def _accelerator_classes(objects: Mapping[str, Manifest]) -> dict[str, AcceleratorClass]:
    """Returns the cluster's classes, without those that this release cannot read."""
    classes = {}
    for name, manifest in objects.items():
        body = {"apiVersion": API_VERSION, "kind": "AcceleratorClass", "metadata": {"name": name}}
        try:
            classes[name] = AcceleratorClass.model_validate({**body, "spec": manifest.get("spec") or {}})
        except ValidationError:
            continue
    return classes
