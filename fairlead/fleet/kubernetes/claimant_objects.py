"""Reads objects that claim names for clients besides models, each once per change.

These are the ModelRoutes of a cluster, and its ModelAdapters as LoRA adapters of their bases.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

from fairlead.adapters.model import LoraAdapter
from fairlead.adapters.resolution import resolve_adapter
from fairlead.api.spec.adapter.spec import ModelAdapterSpec
from fairlead.api.v1alpha1 import ModelAdapter, ModelRoute
from fairlead.errors import BadInput
from fairlead.fleet.client_names import (
    MODEL_CLAIM,
    ClaimKind,
    GrantedNames,
    NameClaim,
    object_claim,
    recorded_names,
)
from fairlead.fleet.kubernetes.spec_cache import ParsedModel
from fairlead.fleet.labels import RELEASE_NAMES_ANNOTATION
from fairlead.fleet.model import Model
from fairlead.kube.resources import Manifest, annotations_of, metadata_of, name_of, namespace_of
from fairlead.manifests.loader import read_object
from fairlead.routes.model import Route

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


def manifest_claim(kind: ClaimKind, manifest: Manifest) -> NameClaim:
    """Returns the names that a model, a route or an adapter claims."""
    spec = manifest.get("spec")
    names = spec.get("model") if isinstance(spec, dict) and kind == MODEL_CLAIM else spec
    given = names.get("servedNames") if isinstance(names, dict) else None
    return object_claim(
        kind,
        namespace_of(manifest) or "default",
        name_of(manifest),
        tuple(str(entry) for entry in given) if isinstance(given, list) else (),
        recorded_names(manifest.get("status") or {}),
        is_releasing=annotations_of(manifest).get(RELEASE_NAMES_ANNOTATION) == "true",
    )


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
        return tuple(sorted(found, key=lambda claimant: (claimant.created, claimant.key)))

    def _parse(self, key: str, item: Manifest, known: tuple[Any, _Value | None, str] | None) -> ParsedClaimant[_Value]:
        written = item.get("spec")
        if known is None or known[0] != written:
            known = (written, *self._read_or_problem(key, item))
        self._known[key] = known
        created = str(metadata_of(item).get("creationTimestamp") or "")
        own_key = f"{namespace_of(item) or 'default'}/{name_of(item)}"
        return ParsedClaimant(manifest_claim(self._kind, item), own_key, created, known[1], known[2])

    def _read_or_problem(self, key: str, item: Manifest) -> tuple[_Value | None, str]:
        try:
            return self._read(item), ""
        except BadInput as error:
            return None, f"the {self._kind} {key} cannot be used: {error}"


ParsedRoute: TypeAlias = ParsedClaimant[Route]


def route_cache() -> ClaimantCache[Route]:
    """Returns an empty cache of parsed routes."""
    return ClaimantCache("route", _read_route)


def granted_routes(
    routes: Iterable[ParsedRoute], granted: Mapping[str, GrantedNames], previous: Mapping[str, Route]
) -> dict[str, Route]:
    """Returns the routes by key, with the names that they get.

    granted: names by the keys of claims.
    previous: the routes until now. One stays as it was while its spec cannot be read.
    """
    found: dict[str, Route] = {}
    for claimant in routes:
        route = previous.get(claimant.key) if claimant.value is None else claimant.value
        if route is not None:
            found[claimant.key] = replace(route, names=granted[claimant.claim.key].all_names(route.name))
    return dict(sorted(found.items()))


def _read_route(item: Manifest) -> Route:
    parsed = read_object(item)
    assert isinstance(parsed, ModelRoute)
    return parsed.to_route()


ParsedAdapter: TypeAlias = ParsedClaimant[ModelAdapterSpec]


def adapter_cache() -> ClaimantCache[ModelAdapterSpec]:
    """Returns an empty cache of parsed adapters."""
    return ClaimantCache("adapter", _read_adapter)


def granted_adapters(
    adapters: Iterable[ParsedAdapter],
    bases: Mapping[str, ParsedModel],
    granted: Mapping[str, GrantedNames],
    previous: Mapping[str, Model],
) -> dict[str, tuple[LoraAdapter, ...]]:
    """Returns the adapters that engines can load, by the key of their base, sorted by name.

    bases: the models by key.
    granted: names by the keys of claims.
    previous: the models until now. An adapter stays as it was while its spec cannot be read, and so
        do all adapters of a base whose spec cannot.
    """
    before = {
        f"{model.namespace}/{adapter.name}": (key, adapter)
        for key, model in previous.items()
        for adapter in model.adapters
    }
    of_bases: dict[str, list[LoraAdapter]] = {}
    for claimant in adapters:
        name = claimant.claim.name
        place = before.get(claimant.key)
        if claimant.value is not None:
            key = f"{claimant.key.partition('/')[0]}/{claimant.value.base}"
            base = bases.get(key)
            if base is None or base.spec is not None:
                found = resolve_adapter(claimant.value, name, None if base is None else base.spec)
                place = None
                if found.source is not None:
                    replicas = claimant.value.replicas or 0
                    place = key, LoraAdapter(name, found.source, replicas=replicas, download=found.download)
        if place is not None:
            names = granted[claimant.claim.key].all_names(name)
            of_bases.setdefault(place[0], []).append(replace(place[1], client_names=names))
    return {key: tuple(sorted(group, key=lambda adapter: adapter.name)) for key, group in of_bases.items()}


def _read_adapter(item: Manifest) -> ModelAdapterSpec:
    parsed = read_object(item)
    assert isinstance(parsed, ModelAdapter)
    return parsed.spec
