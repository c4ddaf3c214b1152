"""The models: what their conditions say, one check for each kind of cause."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Final

from fairlead.api import ConditionType, Reason
from fairlead.kube.resources import Manifest, is_deleting, metadata_of
from fairlead_cli.cluster.checks.verdict import Analyzer, CheckOutcome, Verdict, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import condition_of, is_condition_true, object_key, shorten, status_of
from fairlead_cli.cluster.timestamps import format_age, parse_time

_GRACE_SECONDS: Final = 30.0
"""A change that is younger may be on its way."""
STALL_REASONS: Final[Mapping[str, frozenset[Reason]]] = MappingProxyType(
    {
        "model-image": frozenset({Reason.IMAGE_PULL_FAILED}),
        "model-capacity": frozenset({Reason.INSUFFICIENT_CAPACITY}),
        "model-references": frozenset(
            {Reason.MISSING_SECRET, Reason.MISSING_CONFIG_MAP, Reason.MISSING_CLAIM, Reason.UNKNOWN_ACCELERATOR}
        ),
        "model-admission": frozenset({Reason.QUOTA_EXCEEDED, Reason.POLICY_REFUSED, Reason.FORBIDDEN}),
    }
)
"""Check → the reasons of Stalled that it is about; all others are ``model-stalled``'s."""


def _for_models(judge: Callable[[ClusterFacts, Sequence[Manifest]], Verdict | None]) -> Analyzer:
    """A judge of the models that stay: not known where they could not be read, silent where there are none."""

    @wraps(judge)
    def whole(facts: ClusterFacts) -> Verdict | None:
        if isinstance(facts.models, MissingValue):
            return unknown(facts.models)
        models = [one for one in facts.models if not is_deleting(one)]
        return judge(facts, models) if models else None

    return whole


@_for_models
def check_observed(facts: ClusterFacts, models: Sequence[Manifest]) -> Verdict:
    """Is ``status`` about the present spec?"""
    return verdict_of(
        f"{object_key(one)}: {_generation_lag(one)}, changed {format_age(changed, facts.now)} ago"
        for one in models
        if _generation_lag(one) and (changed := _last_changed(one)) is not None and facts.now - changed > _GRACE_SECONDS
    )


def _generation_lag(model: Manifest) -> str:
    seen, now = status_of(model).get("observedGeneration"), int(metadata_of(model).get("generation") or 0)
    if seen is None:
        return "no operator has seen it"
    return f"generation {seen} of {now} was seen" if int(seen) < now else ""


def _last_changed(model: Manifest) -> float | None:
    """When somebody last wrote something else than status."""
    metadata = metadata_of(model)
    times = [
        parse_time(one.get("time")) for one in metadata.get("managedFields") or [] if one.get("subresource") != "status"
    ]
    return max((one for one in times if one is not None), default=parse_time(metadata.get("creationTimestamp")))


def stalled_analyzer(check: str) -> Analyzer:
    """The judge of one of CAUSES, and of ``model-stalled``."""

    @_for_models
    def judge(_: ClusterFacts, models: Sequence[Manifest]) -> Verdict:
        return verdict_of(_stalled(models, check))

    return judge


def _stalled(models: Iterable[Manifest], check: str) -> Iterator[str]:
    for one in models:
        found = condition_of(one, ConditionType.STALLED)
        if found is None or found.get("status") != "True":
            continue
        reason = str(found.get("reason", ""))
        if check == next((name for name, reasons in STALL_REASONS.items() if reason in reasons), "model-stalled"):
            yield f"{object_key(one)}: {reason}: {shorten(str(found.get('message', '')))}"


@_for_models
def check_ready(_: ClusterFacts, models: Sequence[Manifest]) -> Verdict | None:
    """Those that are neither ready nor stalled; coming up is a warning."""
    bad: list[str] = []
    starting: list[str] = []
    others = [one for one in models if not is_condition_true(one, ConditionType.STALLED)]
    for one in others:
        found = condition_of(one, ConditionType.READY)
        if found is None or found.get("status") == "True":
            continue
        line = f"{object_key(one)}: {found.get('reason')}: {shorten(str(found.get('message', '')))}"
        (starting if found.get("reason") == Reason.STARTING else bad).append(line)
    if bad:
        return verdict_of([*bad, *starting])
    if starting:
        return warned(*starting)
    return passed(f"{len(others)} of {len(models)}") if others else None


@_for_models
def check_names(_: ClusterFacts, models: Sequence[Manifest]) -> Verdict:
    """A warning: the model is served, under its long name."""
    return verdict_of(
        (
            f"{object_key(one)}: {shorten(str(found.get('message', '')))}"
            for one in models
            if (found := condition_of(one, ConditionType.NAME_TAKEN)) is not None and found.get("status") == "True"
        ),
        mark=CheckOutcome.WARNING,
    )
