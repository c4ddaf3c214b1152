"""Reads objects that claim names for clients besides models, each once per change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fairlead.errors import BadInput
from fairlead.fleet.client_names import ClaimKind, NameClaim, object_claim, recorded_names
from fairlead.fleet.labels import RELEASE_NAMES_ANNOTATION
from fairlead.kube.resources import Manifest, annotations_of, metadata_of, name_of, namespace_of

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class ParsedClaimant(Generic[_Value]):
    """A route or an adapter. If this release cannot read it, `value` is None and `problem` says
    why.

    claim: the names that it claims.
    """

    claim: NameClaim
    key: str
    created: str
    value: _Value | None
    problem: str = ""


class ClaimantCache(Generic[_Value]):
    """A cache of the parsed objects of one kind.

    kind: of their claims, and what messages call them.
    read: returns the value of a manifest. Raises BadInput.

    Why: their status changes more often than their spec.
    """

    def __init__(self, kind: ClaimKind, read: Callable[[Manifest], _Value]) -> None:
        self._kind: ClaimKind = kind
        self._read = read
        self._known: dict[str, tuple[Any, _Value | None, str]] = {}

    def parse(self, items: Mapping[str, Manifest]) -> tuple[ParsedClaimant[_Value], ...]:
        """Returns all objects, oldest first."""
        known, self._known = self._known, {}
        found = [self._parse(key, item, known.get(key)) for key, item in items.items()]
        return tuple(sorted(found, key=lambda one: (one.created, one.key)))

    def _parse(self, key: str, item: Manifest, known: tuple[Any, _Value | None, str] | None) -> ParsedClaimant[_Value]:
        written = item.get("spec")
        if known is None or known[0] != written:
            known = (written, *self._read_or_problem(key, item))
        self._known[key] = known
        namespace, name = namespace_of(item) or "default", name_of(item)
        claim = object_claim(
            self._kind,
            namespace,
            name,
            _served_names(written),
            recorded_names(item.get("status") or {}),
            is_releasing=annotations_of(item).get(RELEASE_NAMES_ANNOTATION) == "true",
        )
        created = str(metadata_of(item).get("creationTimestamp") or "")
        return ParsedClaimant(claim, f"{namespace}/{name}", created, known[1], known[2])

    def _read_or_problem(self, key: str, item: Manifest) -> tuple[_Value | None, str]:
        try:
            return self._read(item), ""
        except BadInput as error:
            return None, f"the {self._kind} {key} cannot be used: {error}"


def _served_names(spec: Any) -> tuple[str, ...]:
    given = spec.get("servedNames") if isinstance(spec, dict) else None
    return tuple(str(one) for one in given) if isinstance(given, list) else ()
