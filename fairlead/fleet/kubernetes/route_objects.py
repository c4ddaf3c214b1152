"""The ModelRoutes of a cluster, with the names that they get."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from fairlead.api.v1alpha1 import ModelRoute
from fairlead.fleet.client_names import GrantedNames
from fairlead.fleet.kubernetes.claimant_objects import ClaimantCache, ParsedClaimant
from fairlead.kube.resources import Manifest
from fairlead.manifests.loader import read_object
from fairlead.routes.model import Route

ParsedRoute: TypeAlias = ParsedClaimant[Route]


def route_cache() -> ClaimantCache[Route]:
    """Returns an empty cache of parsed routes."""
    return ClaimantCache("route", _read)


def granted_routes(
    routes: Iterable[ParsedRoute], granted: Mapping[str, GrantedNames], previous: Mapping[str, Route]
) -> dict[str, Route]:
    """Returns the routes by key, with the names that they get.

    granted: names by the keys of claims.
    previous: the routes until now. One stays as it was while its spec cannot be read.
    """
    found: dict[str, Route] = {}
    for one in routes:
        route = previous.get(one.key) if one.value is None else one.value
        if route is not None:
            found[one.key] = replace(route, names=granted[one.claim.key].all_names(route.name))
    return dict(sorted(found.items()))


def _read(item: Manifest) -> Route:
    parsed = read_object(item)
    assert isinstance(parsed, ModelRoute)
    return parsed.to_route()
