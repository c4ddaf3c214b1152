"""A ModelRoute while a conversion puts it together."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, lcm
from typing import Any, Final

from fairlead.api.spec.route.spec import MAX_WEIGHT
from fairlead.api.v1alpha1 import API_VERSION
from fairlead.names import shorten_name
from fairlead_cli.migration.draft import dns_label

BY_CONVERSATION: Final = "shares are of conversations, not of requests: a conversation stays with its model"
_ROUTE_SUFFIX: Final = "-route"


@dataclass(slots=True)
class RouteDraft:
    """A route: its names, its targets and their weights.

    targets: name of a model to its weight.
    overrides: headers, with the targets of the requests that have them.
    fallbacks: the entries of `onFailure`.
    """

    name: str
    targets: dict[str, int]
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    served_names: list[str] = field(default_factory=list)
    overrides: list[tuple[dict[str, str], dict[str, int]]] = field(default_factory=list)
    fallbacks: list[dict[str, Any]] = field(default_factory=list)


def assemble_route(draft: RouteDraft, *, taken: Container[str] = ()) -> dict[str, Any]:
    """Returns the ModelRoute.

    taken: names of models, which a route cannot have.
    """
    label = dns_label(draft.name)
    name = shorten_name(f"{label}{_ROUTE_SUFFIX}" if label in taken else label)
    metadata: dict[str, Any] = {"name": name}
    fields = {"namespace": draft.namespace, "labels": draft.labels, "annotations": draft.annotations}
    metadata |= {key: value for key, value in fields.items() if value}
    spec: dict[str, Any] = {}
    served_names = [served for served in dict.fromkeys(draft.served_names) if served != name]
    if served_names:
        spec["servedNames"] = served_names
    spec["targets"] = _targets(draft.targets)
    if draft.overrides:
        spec["overrides"] = [
            {"headers": dict(headers), "targets": _targets(targets)} for headers, targets in draft.overrides
        ]
    if draft.fallbacks:
        spec["onFailure"] = [dict(fallback) for fallback in draft.fallbacks]
    return {"apiVersion": API_VERSION, "kind": "ModelRoute", "metadata": metadata, "spec": spec}


def whole_weights(shares: Sequence[Fraction]) -> list[int]:
    """Returns the smallest whole numbers with the ratios of the shares.

    A ratio that needs greater numbers than a route takes is rounded; a share above 0 stays above 0.
    """
    scale = lcm(*(share.denominator for share in shares))
    numbers = [int(share * scale) for share in shares]
    common = gcd(*numbers) or 1
    numbers = [number // common for number in numbers]
    greatest = max(numbers, default=0)
    if greatest <= MAX_WEIGHT:
        return numbers
    return [max(1, round(number * MAX_WEIGHT / greatest)) if number else 0 for number in numbers]


def _targets(weights: dict[str, int]) -> list[dict[str, Any]]:
    if len(weights) == 1 and all(weights.values()):
        return [{"model": model} for model in weights]
    return [{"model": model, "weight": weight} for model, weight in weights.items()]
