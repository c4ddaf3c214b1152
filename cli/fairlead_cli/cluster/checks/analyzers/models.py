"""Checks of the models' conditions: one check for each kind of cause."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Final

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.spec.engine import EngineType
from fairlead.engine_profile import builtin_profiles
from fairlead.fleet.endpoint_address import ENDPOINT_SECRETS_FOLDER
from fairlead.kube.conditions import parse_time
from fairlead.kube.resources import Manifest, is_deleting, key_of, metadata_of, name_of
from fairlead_cli.cluster.checks.check import Analyzer, CheckOutcome, Verdict, known, passed, verdict_of, warned
from fairlead_cli.cluster.components import GATEWAY, watched_namespaces
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.model_references import ModelReference, accelerator_names
from fairlead_cli.cluster.object_fields import (
    MAX_CONDITION_MESSAGE,
    MissingValue,
    arguments_of,
    condition_of,
    containers_of,
    format_age,
    is_condition_true,
    namespace_name,
    pod_spec_of,
    shorten,
    spec_of,
    status_of,
)

_GRACE_SECONDS: Final = 30.0
"""A younger change may still be in progress."""
STALL_REASONS: Final[Mapping[str, frozenset[Reason]]] = MappingProxyType(
    {
        "model-image": frozenset({Reason.IMAGE_PULL_FAILED}),
        "model-capacity": frozenset({Reason.INSUFFICIENT_CAPACITY}),
        "model-references": frozenset(
            {
                Reason.MISSING_SECRET,
                Reason.MISSING_CONFIG_MAP,
                Reason.MISSING_CLAIM,
                Reason.UNBOUND_CLAIM,
                Reason.UNKNOWN_ACCELERATOR,
            }
        ),
        "model-admission": frozenset({Reason.QUOTA_EXCEEDED, Reason.POLICY_REFUSED, Reason.FORBIDDEN}),
    }
)
"""Check → reasons of Stalled that it covers; ``model-stalled`` covers all others."""

_FIELDS = ("tokenSecretKeyRef", "caSecretKeyRef")


def for_models(analyzer: Callable[[ClusterFacts, Sequence[Manifest]], Verdict | None]) -> Analyzer:
    """Returns the analyzer of all models that are not being deleted.

    Its verdict is unknown when the models cannot be read, and None when there are none.
    """

    @wraps(analyzer)
    def analyze(facts: ClusterFacts) -> Verdict | None:
        models = [model for model in known(facts.models) if not is_deleting(model)]
        return analyzer(facts, models) if models else None

    return analyze


@for_models
def check_observed(facts: ClusterFacts, models: Sequence[Manifest]) -> Verdict:
    """Fails when ``status`` has been behind the spec for more than _GRACE_SECONDS."""
    return verdict_of(
        f"{key_of(model)}: {_generation_lag(model)}, changed {format_age(changed, facts.now)} ago"
        for model in models
        if _generation_lag(model)
        and (changed := _last_changed(model)) is not None
        and facts.now - changed > _GRACE_SECONDS
    )


def _generation_lag(model: Manifest) -> str:
    observed, current = status_of(model).get("observedGeneration"), int(metadata_of(model).get("generation") or 0)
    if observed is None:
        return "no operator has seen it"
    return f"generation {observed} of {current} was seen" if int(observed) < current else ""


def _last_changed(model: Manifest) -> float | None:
    """Returns the Unix time of the last write outside of ``status``, else of creation, or None."""
    metadata = metadata_of(model)
    times = [
        parse_time(entry.get("time"))
        for entry in metadata.get("managedFields") or []
        if entry.get("subresource") != "status"
    ]
    return max((entry for entry in times if entry is not None), default=parse_time(metadata.get("creationTimestamp")))


def stalled_analyzer(check: str) -> Analyzer:
    """Returns the analyzer of one of STALL_REASONS, or of ``model-stalled``."""

    @for_models
    def analyze(_: ClusterFacts, models: Sequence[Manifest]) -> Verdict:
        return verdict_of(_stalled(models, check))

    return analyze


def _stalled(models: Iterable[Manifest], check: str) -> Iterator[str]:
    for model in models:
        stalled = condition_of(model, ConditionType.STALLED)
        if stalled is None or stalled.get("status") != "True":
            continue
        reason = str(stalled.get("reason", ""))
        if check == next((name for name, reasons in STALL_REASONS.items() if reason in reasons), "model-stalled"):
            yield f"{key_of(model)}: {reason}: {shorten(str(stalled.get('message', '')), MAX_CONDITION_MESSAGE)}"


@for_models
def check_references(facts: ClusterFacts, models: Sequence[Manifest]) -> Verdict:
    """Fails for all that models name and that is missing, also before a pod waits for it."""
    missing = [
        f"{reference.model}: there is no {_describe(reference)}"
        for reference, exists in facts.references.items()
        if exists is False
    ]
    doubts = (exists.reason for exists in facts.references.values() if isinstance(exists, MissingValue))
    return verdict_of([*_stalled(models, "model-references"), *_unknown_classes(facts, models), *missing], doubts)


def _describe(reference: ModelReference) -> str:
    place = f"{reference.resource.kind} {reference.namespace}/{reference.name}"
    return f"{place} with the entry {reference.entry}" if reference.entry else place


def _unknown_classes(facts: ClusterFacts, models: Sequence[Manifest]) -> Iterator[str]:
    if isinstance(facts.accelerator_classes, MissingValue):
        return
    known = {name_of(one) for one in facts.accelerator_classes} | set(builtin_accelerators())
    for model in models:
        is_simulated = (spec_of(model).get("engine") or {}).get("type") == EngineType.SIM
        for name in accelerator_names(model):
            if name not in known and not (is_simulated and name in builtin_profiles()):
                yield f"{key_of(model)}: there is no AcceleratorClass {name}"


@for_models
def check_ready(_: ClusterFacts, models: Sequence[Manifest]) -> Verdict | None:
    """Fails for models that are neither ready nor stalled; warns about starting ones."""
    failing: list[str] = []
    starting: list[str] = []
    moving = [model for model in models if not is_condition_true(model, ConditionType.STALLED)]
    for model in moving:
        ready = condition_of(model, ConditionType.READY)
        if ready is None or ready.get("status") == "True":
            continue
        line = f"{key_of(model)}: {ready.get('reason')}: {shorten(str(ready.get('message', '')))}"
        (starting if ready.get("reason") == Reason.STARTING else failing).append(line)
    if failing:
        return verdict_of([*failing, *starting])
    if starting:
        return warned(*starting)
    return passed(f"{len(moving)} of {len(models)}") if moving else None


@for_models
def check_names(_: ClusterFacts, models: Sequence[Manifest]) -> Verdict:
    """Warns about models that only ``namespace/name`` reaches: another has the short name."""
    return verdict_of(
        (
            f"{key_of(model)}: {shorten(str(name_taken.get('message', '')))}"
            for model in models
            if (name_taken := condition_of(model, ConditionType.NAME_TAKEN)) is not None
            and name_taken.get("status") == "True"
        ),
        outcome=CheckOutcome.WARNING,
    )


@dataclass(frozen=True, slots=True)
class EndpointSecret:
    """A key of a Secret that an endpoint names. ``model``: ``namespace/name``."""

    model: str
    namespace: str
    name: str
    key: str


@for_models
def check_endpoint_secrets(facts: ClusterFacts, models: Sequence[Manifest]) -> Verdict | None:
    """Fails for Secrets of endpoints that a gateway does not mount, or that lack what is named.

    Returns None when no model names any.
    """
    wanted = list(dict.fromkeys(secret for model in models for secret in _endpoint_secrets(model)))
    if not wanted:
        return None
    deployments = known(facts.component_deployments(GATEWAY))
    findings: list[str] = []
    doubts: list[str] = []
    for gateway in deployments:
        if not any(argument.startswith("--kube") for argument in arguments_of(gateway)):
            continue  # it serves the models of its fleet file alone
        watched, mounted = watched_namespaces(gateway), _mounted_secrets(gateway)
        for secret in wanted:
            if watched and secret.namespace not in watched:
                continue
            name = mounted.get(f"{ENDPOINT_SECRETS_FOLDER}/{secret.namespace}/{secret.name}")
            if name is None:
                place = f"the Secret {secret.name} for models of the namespace {secret.namespace}"
                findings.append(f"{secret.model}: {key_of(gateway)} does not mount {place}")
                continue
            problem = _problem(facts, namespace_name(gateway), name, secret.key)
            if isinstance(problem, MissingValue):
                doubts.append(problem.reason)
            elif problem:
                findings.append(f"{secret.model}: {problem}")
    return verdict_of(findings, doubts)


def _endpoint_secrets(model: Manifest) -> Iterator[EndpointSecret]:
    for pool in spec_of(model).get("pools") or []:
        for endpoint in pool.get("endpoints") or []:
            for reference in (endpoint.get(field) or {} for field in _FIELDS):
                if reference.get("name"):
                    name, key = str(reference["name"]), str(reference.get("key") or "")
                    yield EndpointSecret(key_of(model), namespace_name(model), name, key)


def _mounted_secrets(gateway: Manifest) -> Mapping[str, str]:
    """Returns the Secrets that a gateway mounts, by folder."""
    pods = pod_spec_of(gateway)
    volumes = {
        volume.get("name"): str((volume.get("secret") or {}).get("secretName") or "")
        for volume in pods.get("volumes") or []
    }
    return {
        str(mount.get("mountPath")): volumes[mount.get("name")]
        for container in containers_of(pods)
        for mount in container.get("volumeMounts") or []
        if volumes.get(mount.get("name"))
    }


def _problem(facts: ClusterFacts, namespace: str, name: str, key: str) -> str | MissingValue:
    """Returns what a mounted Secret lacks; empty for nothing."""
    secret = facts.secrets.get((namespace, name), MissingValue(f"the Secret {namespace}/{name} was not read"))
    if isinstance(secret, MissingValue):
        return f"there is no Secret {namespace}/{name}" if secret.is_absent else secret
    return "" if key in secret.entries else f"the Secret {namespace}/{name} has no entry {key}"
