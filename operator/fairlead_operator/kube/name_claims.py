"""The names that a model, a route or an adapter claims, from its manifest. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fairlead.fleet.client_names import NameClaim, adapter_claim, recorded_names, route_claim
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


_MAKE_CLAIM: Final[Mapping[str, Callable[..., NameClaim]]] = {
    MODEL_ROUTES.kind: route_claim,
    MODEL_ADAPTERS.kind: adapter_claim,
}


def claim_of(manifest: Manifest) -> ObjectClaim:
    """Returns the names that a model, a route or an adapter claims."""
    namespace, _, name = key_of(manifest).partition("/")
    make_claim = _MAKE_CLAIM.get(str(manifest.get("kind")))
    spec = manifest.get("spec") or {}
    given = (spec.get("model") or {} if make_claim is None else spec).get("servedNames")
    served = tuple(str(one) for one in given) if isinstance(given, list) else ()
    releasing = annotations_of(manifest).get(RELEASE_NAMES_ANNOTATION) == "true"
    recorded = recorded_names(manifest.get("status") or {})
    if make_claim is None:
        claim = NameClaim(namespace, name, served, recorded, releasing)
    else:
        claim = make_claim(namespace, name, served, recorded, is_releasing=releasing)
    return ObjectClaim(claim, frozenset((name, *served)))


def claim_key(manifest: Manifest) -> str:
    """Returns the key of the claim of a model, a route or an adapter."""
    make_claim = _MAKE_CLAIM.get(str(manifest.get("kind")))
    if make_claim is None:
        return key_of(manifest)
    namespace, _, name = key_of(manifest).partition("/")
    return make_claim(namespace, name, ()).key


NO_CLAIM: Final = ObjectClaim(NameClaim("", ""), frozenset())


def created_at(model: Manifest | None) -> str:
    """Returns `metadata.creationTimestamp`; empty if there is none."""
    return "" if model is None else str(metadata_of(model).get("creationTimestamp", ""))
