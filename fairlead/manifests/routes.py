"""The routes of files that are all there is, as in local mode. Pure.

What a cluster shows as a condition of a route is an error here.
"""

from fairlead.errors import BadInput
from fairlead.fleet.client_names import NameClaim, describe_owner, grant_names, object_claim
from fairlead.manifests.loader import Manifests, to_fleet_model
from fairlead.manifests.yaml_nodes import format_path
from fairlead.routes.model import Route


def plan_routes(manifests: Manifests) -> tuple[Route, ...]:
    """Returns the routes of all files.

    Raises BadInput, with the field, for a target that is no model of the files, or that does not
    allow the route. It also raises for a name that a model or another route has.
    """
    routes = [document.to_route() for document in manifests.routes]
    models = {model.key: model for model in manifests.models}
    for route in routes:
        for path, model in route.model_paths():
            if model not in models:
                message = f"the route {route.key} leads to {model}, which is no model of these files"
                raise BadInput(message, field=format_path(("spec", *path)), hint="give its file too, or correct it")
            if not to_fleet_model(models[model]).takes_routes_of(route.namespace):
                message = f"the route {route.key} leads to {model}, which takes no routes of {route.namespace}"
                hint = f"add `allowedRoutes: [{route.namespace}]` to the spec of {model}"
                raise BadInput(message, field=format_path(("spec", *path)), hint=hint)
    claims = [
        NameClaim(model.metadata.namespace or "default", model.metadata.name, tuple(model.spec.model.served_names))
        for model in models.values()
    ]
    keys = {
        route.key: object_claim(
            "route", route.namespace, route.name, tuple(name for name in route.names if name != route.name)
        )
        for route in routes
    }
    granted = grant_names([*claims, *keys.values()], {claim.namespace for claim in claims})
    for key, claim in keys.items():
        for refused in granted[claim.key].refused:
            owner = "a namespace of models" if refused.owner is None else describe_owner(refused.owner)
            message = f"clients cannot reach the route {key} by {refused.name}: it belongs to {owner}"
            field = "metadata.name" if refused.name == claim.name else "spec.servedNames"
            raise BadInput(message, field=field, hint="use another name")
    return tuple(routes)
