"""Routes of a cluster: what they become in the fleet, and which names they get."""

from dataclasses import replace
from typing import Any

from fairlead.fleet.client_names import NameHistory
from fairlead.fleet.kubernetes.builder import FleetResult
from fairlead.fleet.kubernetes.claimant_objects import route_cache
from fairlead.kube.resources import MODEL_ROUTES, Manifest
from fairlead.limits import Limits
from fairlead.routes.model import RouteTarget
from fairlead_testing.kube.manifests import manifest
from fairlead_testing.kube.operator_harness import build, keyed, named


def route(name: str, *served: str, born: str = "5", namespace: str = "x", **spec: Any) -> Manifest:
    whole = {"servedNames": list(served), "targets": [{"model": "tiny"}], **spec}
    return manifest(MODEL_ROUTES, name, namespace, {"creationTimestamp": born}, spec=whole)


def built(models: list[Manifest], routes: list[Manifest], **more: Any) -> FleetResult:
    return build(models, routes=route_cache().parse(keyed(*routes)), **more)


def names_of(outcome: FleetResult) -> dict[str, tuple[str, ...]]:
    return {key: served_route.names for key, served_route in outcome.fleet.routes.items()}


def test_a_route_has_its_name_and_those_that_it_serves() -> None:
    outcome = built([named("tiny")], [route("a", "org/a", targets=[{"model": "tiny", "weight": 3}, {"model": "y/b"}])])
    assert names_of(outcome) == {"x/a": ("a", "org/a")}
    assert outcome.fleet.routes["x/a"].targets == (RouteTarget("x/tiny", 3), RouteTarget("y/b", 1))
    assert outcome.problems == ()


def test_an_older_model_keeps_its_names_and_a_younger_one_takes_none() -> None:
    models = [named("tiny", "org/a", born="1"), named("a", "b", born="9")]
    outcome = built(models, [route("a", "b", "org/a", "x/new")])
    assert names_of(outcome) == {"x/a": ("a", "b")}
    assert [outcome.fleet.models[key].shadowed for key in ("x/tiny", "x/a")] == [False, True]
    assert outcome.fleet.resolve_model("b") is None


def test_a_namespace_with_routes_alone_is_kept_from_models_of_others() -> None:
    models = [named("tiny", namespace="y"), named("b", "x/a", namespace="z")]
    outcome = built(models, [route("a", targets=[{"model": "y/tiny"}])])
    assert outcome.fleet.resolve_model("x/a") is None
    history = NameHistory(remembered=outcome.name_owners)
    assert built(models, [], name_history=history).fleet.resolve_model("x/a") is None


def test_a_name_belongs_to_the_route_whose_status_has_it() -> None:
    recorded = {**route("b", born="7"), "status": {"clientName": "b", "servedNames": ["shared"]}}
    recorded["spec"]["servedNames"] = ["shared"]
    outcome = built([named("tiny")], [route("a", "shared"), recorded])
    assert names_of(outcome) == {"x/a": ("a",), "x/b": ("b", "shared")}


def test_a_deleted_route_keeps_its_names_until_it_releases_them() -> None:
    before = built([named("tiny")], [route("a", "shared")])
    history = NameHistory(remembered=before.name_owners)
    waiting = [named("tiny"), named("shared", born="9")]
    assert built(waiting, [], name_history=history).fleet.resolve_model("shared") is None
    releasing = route("a", "shared")
    releasing["metadata"]["annotations"] = {"fairlead.io/release-names": "true"}
    assert built(waiting, [releasing], name_history=history).fleet.resolve_model("shared") == "x/shared"


def test_a_route_that_cannot_be_read_stays_as_it_was() -> None:
    before = built([named("tiny")], [route("a", targets=[{"model": "tiny", "weight": 2}])])
    broken = route("a", targets=[{"model": "tiny", "share": 2}])
    outcome = built([named("tiny")], [broken], previous=before.fleet)
    assert outcome.fleet.routes == before.fleet.routes
    (problem,) = outcome.problems
    assert "the route x/a cannot be used: spec.targets[0].share: unknown field" in problem
    assert built([named("tiny")], [broken]).fleet.routes == {}


def test_only_the_oldest_routes_are_served_beyond_the_limit() -> None:
    routes = [route("c", born="3"), route("a", born="1"), route("b", born="2")]
    outcome = built([named("tiny")], routes, limits=replace(Limits(), routes=2))
    assert set(outcome.fleet.routes) == {"x/a", "x/b"}
    assert outcome.problems == ("there are 3 routes: only the oldest 2 are served",)


def test_models_of_other_namespaces_get_only_requests_that_they_allow() -> None:
    """Gateways skip such an override, fallback and shadow. A route with such a target ends."""
    other = named("big", namespace="y")
    own = [{"model": "tiny"}]
    cases = {
        "target": {"targets": [*own, {"model": "y/big"}]},
        "idle": {"targets": [*own, {"model": "y/big", "weight": 0}]},
        "override": {"targets": own, "overrides": [{"tenants": ["t"], "targets": [{"model": "y/big"}]}]},
        "fallback": {"targets": own, "onFailure": [{"when": ["Unavailable"], "to": "y/big"}]},
        "shadow": {"targets": own, "shadow": {"model": "y/big"}},
    }
    routes = [route(name, **spec) for name, spec in cases.items()]
    outcome = built([named("tiny"), other], routes)
    assert sorted(outcome.fleet.routes) == ["x/fallback", "x/idle", "x/override", "x/shadow"]
    for served_route in outcome.fleet.routes.values():
        assert (served_route.overrides, served_route.fallbacks, served_route.shadow) == ((), (), None)
    assert "the route x/shadow: spec.allowedRoutes of y/big does not list its namespace" in outcome.problems
    for allowed in (["x"], ["*"]):
        open_to = {**other, "spec": {**other["spec"], "allowedRoutes": allowed}}
        served = built([named("tiny"), open_to], routes)
        assert sorted(served.fleet.routes) == sorted(f"x/{name}" for name in cases)
        assert served.fleet.routes["x/shadow"].shadow is not None
        assert served.problems == ()
    closed = {**other, "spec": {**other["spec"], "allowedRoutes": ["z"]}}
    assert built([named("tiny"), closed], routes).fleet.routes == outcome.fleet.routes
