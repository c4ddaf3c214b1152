"""The names that a model, a route or an adapter claims, from its manifest. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fairlead.fleet.client_names import MODEL_CLAIM, ClaimKind, NameClaim, object_claim, recorded_names
from fairlead.fleet.labels import RELEASE_NAMES_ANNOTATION
from fairlead.kube.resources import (
    MODEL_ADAPTERS,
    MODEL_ROUTES,
    Manifest,
    annotations_of,
    key_of,
    metadata_of,
)


@dataclass(frozen=True, slots=True)
class ObjectClaim:
    """The names that an object claims: as `grant_names` takes them, and as a set."""

    claim: NameClaim
    names: frozenset[str]


_CLAIM_KINDS: Final[Mapping[str, ClaimKind]] = {MODEL_ROUTES.kind: "route", MODEL_ADAPTERS.kind: "adapter"}


def claim_of(manifest: Manifest) -> ObjectClaim:
    """Returns the names that a model, a route or an adapter claims."""
    namespace, _, name = key_of(manifest).partition("/")
    kind = _claim_kind(manifest)
    spec = manifest.get("spec") or {}
    given = (spec.get("model") or {} if kind == MODEL_CLAIM else spec).get("servedNames")
    served = tuple(str(one) for one in given) if isinstance(given, list) else ()
    releasing = annotations_of(manifest).get(RELEASE_NAMES_ANNOTATION) == "true"
    recorded = recorded_names(manifest.get("status") or {})
    claim = object_claim(kind, namespace, name, served, recorded, is_releasing=releasing)
    return ObjectClaim(claim, frozenset((name, *served)))


def claim_key(manifest: Manifest) -> str:
    """Returns the key of the claim of a model, a route or an adapter."""
    namespace, _, name = key_of(manifest).partition("/")
    return object_claim(_claim_kind(manifest), namespace, name).key


def _claim_kind(manifest: Manifest) -> ClaimKind:
    return _CLAIM_KINDS.get(str(manifest.get("kind")), MODEL_CLAIM)


NO_CLAIM: Final = ObjectClaim(NameClaim("", ""), frozenset())


def created_at(model: Manifest | None) -> str:
    """Returns `metadata.creationTimestamp`; empty if there is none."""
    return "" if model is None else str(metadata_of(model).get("creationTimestamp", ""))
