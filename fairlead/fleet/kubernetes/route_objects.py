"""Reads the ModelRoutes of a cluster, each once per change, and gives them their names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairlead.api.v1alpha1 import ModelRoute
from fairlead.errors import BadInput
from fairlead.fleet.client_names import GrantedNames, NameClaim, recorded_names, route_claim
from fairlead.fleet.kubernetes.spec_cache import trim_model
from fairlead.fleet.labels import RELEASE_NAMES_ANNOTATION
from fairlead.kube.resources import Manifest, annotations_of, metadata_of, name_of, namespace_of
from fairlead.manifests.loader import read_object
from fairlead.routes.model import Route

trim_route = trim_model


@dataclass(frozen=True, slots=True)
class ParsedRoute:
    """A ModelRoute. If this release cannot read it, `route` is None and `problem` says why.

    claim: the names that it claims.
    """

    claim: NameClaim
    key: str
    created: str
    route: Route | None
    problem: str = ""


class RouteCache:
    """A cache of the parsed routes.

    Why: their status changes more often than their spec.
    """

    def __init__(self) -> None:
        self._routes: dict[str, tuple[Any, Route | None, str]] = {}

    def routes(self, items: Mapping[str, Manifest]) -> tuple[ParsedRoute, ...]:
        """Returns all routes, oldest first."""
        known, self._routes = self._routes, {}
        found = [self._parse(key, item, known.get(key)) for key, item in items.items()]
        return tuple(sorted(found, key=lambda one: (one.created, one.key)))

    def _parse(self, key: str, item: Manifest, known: tuple[Any, Route | None, str] | None) -> ParsedRoute:
        written = item.get("spec")
        if known is None or known[0] != written:
            known = (written, *_read(key, item))
        self._routes[key] = known
        namespace, name = namespace_of(item) or "default", name_of(item)
        claim = route_claim(
            namespace,
            name,
            _served_names(written),
            recorded_names(item.get("status") or {}),
            is_releasing=annotations_of(item).get(RELEASE_NAMES_ANNOTATION) == "true",
        )
        created = str(metadata_of(item).get("creationTimestamp") or "")
        return ParsedRoute(claim, f"{namespace}/{name}", created, known[1], known[2])


def granted_routes(
    routes: Iterable[ParsedRoute], granted: Mapping[str, GrantedNames], previous: Mapping[str, Route]
) -> dict[str, Route]:
    """Returns the routes by key, with the names that they get.

    granted: names by the keys of claims.
    previous: the routes until now. One stays as it was while its spec cannot be read.
    """
    found: dict[str, Route] = {}
    for one in routes:
        route = previous.get(one.key) if one.route is None else one.route
        if route is not None:
            names = granted[one.claim.key]
            own = (route.name,) if names.has_own_name else ()
            found[one.key] = replace(route, names=(*own, *names.served_names))
    return dict(sorted(found.items()))


def _read(key: str, item: Manifest) -> tuple[Route | None, str]:
    try:
        parsed = read_object(item)
    except BadInput as error:
        return None, f"the route {key} cannot be used: {error}"
    assert isinstance(parsed, ModelRoute)
    return parsed.to_route(), ""


def _served_names(spec: Any) -> tuple[str, ...]:
    given = spec.get("servedNames") if isinstance(spec, dict) else None
    return tuple(str(one) for one in given) if isinstance(given, list) else ()
