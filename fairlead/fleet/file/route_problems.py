"""Problems of the routes of a fleet file, each with line, field and fix."""

from collections.abc import Mapping, Sequence

from fairlead.errors import FileProblem
from fairlead.fleet.client_names import GrantedNames, describe_owner, object_claim
from fairlead.fleet.model import Model
from fairlead.manifests.yaml_nodes import YamlNode, format_path, format_value
from fairlead.names import closest_matches
from fairlead.routes.model import Route

_Path = tuple[str | int, ...]


def route_problems(
    routes: Sequence[Route], granted: Mapping[str, GrantedNames], models: Mapping[str, Model], node: YamlNode, file: str
) -> list[FileProblem]:
    """Returns the problems of routes: those that are given twice, and names that they do not get.

    Targets are problems that are no models of the file, or that take no routes of the namespace.

    granted: the names of models and routes, by the keys of their claims.
    models: by their keys.
    """
    problems: list[FileProblem] = []

    def add(path: _Path, message: str, fix: str) -> None:
        problems.append(FileProblem(file, node.locate(path).line, format_path(path), message, fix))

    seen: set[str] = set()
    for number, route in enumerate(routes):
        if route.key in seen:
            add(("routes", number, "name"), f"the route {route.key} is already given", "remove one or rename it")
            continue
        seen.add(route.key)
        for refused in granted[object_claim("route", route.namespace, route.name).key].refused:
            why = "it begins with a namespace that holds models"
            if refused.owner is not None:
                why = f"{describe_owner(refused.owner)} has it"
            field = "name" if refused.name == route.name else "servedNames"
            message = f"clients cannot reach the route by {format_value(refused.name)}: {why}"
            add(("routes", number, field), message, "use another name")
        for path, model in route.model_paths():
            if model not in models:
                matches = closest_matches(model, models, count=1)
                fix = f"did you mean {matches[0]}?" if matches else "name a model of this file as namespace/name"
                add(("routes", number, *path), f"no model of this file is {format_value(model)}", fix)
            elif not models[model].takes_routes_of(route.namespace):
                message = f"{format_value(model)} takes no routes of the namespace {route.namespace}"
                add(("routes", number, *path), message, f"add `allowedRoutes: [{route.namespace}]` to the model")
    return problems
