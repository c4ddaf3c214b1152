"""The models: what their conditions say, one check for each kind of cause."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Final

from fairlead.api import ConditionType, Reason
from fairlead.kube.resource import Manifest, leaving, metadata_of
from fairlead_cli.cluster.facts import Facts
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.reading import condition, holds, key, short, status
from fairlead_cli.cluster.times import age, wall
from fairlead_cli.cluster.verdict import Judge, Mark, Verdict, judged, ok, unknown, warned

_GRACE_SECONDS: Final = 30.0
"""A change that is younger may be on its way."""
CAUSES: Final[Mapping[str, frozenset[Reason]]] = MappingProxyType(
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


def _of_models(judge: Callable[[Facts, Sequence[Manifest]], Verdict | None]) -> Judge:
    """A judge of the models that stay: not known where they could not be read, silent where there are none."""

    @wraps(judge)
    def whole(facts: Facts) -> Verdict | None:
        if isinstance(facts.models, Missing):
            return unknown(facts.models)
        models = [one for one in facts.models if not leaving(one)]
        return judge(facts, models) if models else None

    return whole


@_of_models
def observed(facts: Facts, models: Sequence[Manifest]) -> Verdict:
    """Is ``status`` about the present spec?"""
    return judged(
        f"{key(one)}: {_behind(one)}, changed {age(changed, facts.now)} ago"
        for one in models
        if _behind(one) and (changed := _changed(one)) is not None and facts.now - changed > _GRACE_SECONDS
    )


def _behind(model: Manifest) -> str:
    seen, now = status(model).get("observedGeneration"), int(metadata_of(model).get("generation") or 0)
    if seen is None:
        return "no operator has seen it"
    return f"generation {seen} of {now} was seen" if int(seen) < now else ""


def _changed(model: Manifest) -> float | None:
    """When somebody last wrote something else than status."""
    metadata = metadata_of(model)
    times = [wall(one.get("time")) for one in metadata.get("managedFields") or [] if one.get("subresource") != "status"]
    return max((one for one in times if one is not None), default=wall(metadata.get("creationTimestamp")))


def caused(check: str) -> Judge:
    """The judge of one of CAUSES, and of ``model-stalled``."""

    @_of_models
    def judge(_: Facts, models: Sequence[Manifest]) -> Verdict:
        return judged(_stalled(models, check))

    return judge


def _stalled(models: Iterable[Manifest], check: str) -> Iterator[str]:
    for one in models:
        found = condition(one, ConditionType.STALLED)
        if found is None or found.get("status") != "True":
            continue
        reason = str(found.get("reason", ""))
        if check == next((name for name, reasons in CAUSES.items() if reason in reasons), "model-stalled"):
            yield f"{key(one)}: {reason}: {short(str(found.get('message', '')))}"


@_of_models
def ready(_: Facts, models: Sequence[Manifest]) -> Verdict | None:
    """Those that are neither ready nor stalled; coming up is a warning."""
    bad: list[str] = []
    starting: list[str] = []
    others = [one for one in models if not holds(one, ConditionType.STALLED)]
    for one in others:
        found = condition(one, ConditionType.READY)
        if found is None or found.get("status") == "True":
            continue
        line = f"{key(one)}: {found.get('reason')}: {short(str(found.get('message', '')))}"
        (starting if found.get("reason") == Reason.STARTING else bad).append(line)
    if bad:
        return judged([*bad, *starting])
    if starting:
        return warned(*starting)
    return ok(f"{len(others)} of {len(models)}") if others else None


@_of_models
def names(_: Facts, models: Sequence[Manifest]) -> Verdict:
    """A warning: the model is served, under its long name."""
    return judged(
        (
            f"{key(one)}: {short(str(found.get('message', '')))}"
            for one in models
            if (found := condition(one, ConditionType.NAME_TAKEN)) is not None and found.get("status") == "True"
        ),
        mark=Mark.WARNING,
    )
