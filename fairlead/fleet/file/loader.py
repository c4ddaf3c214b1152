"""Parses fleet files. Every problem is reported, each with line, field and fix."""

from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError

from fairlead import units
from fairlead.engines.lora_api import has_lora_api
from fairlead.errors import FileProblem, ManifestError
from fairlead.fleet.client_names import GrantedNames, NameClaim, describe_owner, grant_names, object_claim
from fairlead.fleet.engine_url import endpoint_id
from fairlead.fleet.file.schema import FileFleet, FileInstance, FileModel
from fairlead.fleet.model import (
    EXTERNAL_API,
    KV_TRANSFERS,
    EngineAuth,
    Fleet,
    Instance,
    Model,
    Role,
    served_name_override,
)
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import YamlNode, format_path, format_value, parse_documents
from fairlead.names import closest_matches
from fairlead.routes.model import Route

_Path = tuple[str | int, ...]
_Add = Callable[[_Path, str, str], None]
"""Adds a problem: the path of its field, a message and a fix."""


def _check_routes(
    routes: Sequence[Route], granted: Mapping[str, GrantedNames], models: Mapping[str, Model], add: _Add
) -> None:
    """Adds the problems of routes: those that are given twice, and names that they do not get.

    Targets are problems that are no models of the file, or that take no routes of the namespace.

    granted: the names of models and routes, by the keys of their claims.
    models: by their keys.
    """
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


def _check_adapters(content: FileFleet, add: _Add) -> None:
    """Adds the problems of adapters: names that something else has, and models that hand KV over,
    whose engines serve no adapters.
    """
    owners, namespaces = _owners(content), {model.namespace for model in content.models}
    for number, model in enumerate(content.models):
        if model.adapters and any(instance.role is not Role.SERVE for instance in model.instances):
            message = "a model with Prefill and Decode instances serves no adapters"
            add(("models", number, "adapters"), message, "give the adapters to a model whose instances Serve")
        for index, instance in enumerate(model.instances if model.adapters else ()):
            if not has_lora_api(instance.engine):
                message = f"engines of the type {instance.engine} load no adapters at run time"
                add(("models", number, "instances", index, "engine"), message, "remove the adapters of the model")
        for index, adapter in enumerate(model.adapters):
            path: _Path = ("models", number, "adapters", index, "name")
            name, (first, slash, _) = adapter.name, adapter.name.partition("/")
            if slash and first in namespaces:
                why = "it begins with a namespace that holds models"
                add(path, f"clients cannot reach the adapter by {format_value(name)}: {why}", "use another name")
            elif name in owners:
                add(path, f"{owners[name]} has the name {format_value(name)}", "use another name")
            owners.setdefault(name, f"an adapter of the model {model.namespace}/{model.name}")


def _owners(content: FileFleet) -> dict[str, str]:
    """Returns who has each name for clients, adapters left out."""
    owners: dict[str, str] = {}
    for model in content.models:
        for name in (model.name, *model.served_names):
            owners.setdefault(name, f"the model {model.namespace}/{model.name}")
    for route in content.routes:
        for name in (route.name, *route.served_names):
            owners.setdefault(name, f"the route {route.namespace}/{route.name}")
    return owners


def parse_fleet_file(text: str, *, file: str, limits: Limits | None = None) -> Fleet:
    """Returns the fleet that `text` describes, as version 1. Raises ManifestError with every
    problem.
    """
    limits = limits or Limits()
    documents = parse_documents(text, file=file, limits=limits)
    if len(documents) != 1:
        message = "the file is empty" if not documents else f"{len(documents)} YAML documents, but a fleet file has one"
        line = documents[1].line if documents else 1
        fix = "begin with `models:`" if not documents else "put all models under one `models:`"
        raise ManifestError((FileProblem(file, line, "(document)", message, fix),))
    node = documents[0]
    try:
        content = FileFleet.model_validate(node.to_python(), by_alias=True, by_name=False)
    except ValidationError as error:
        from fairlead.manifests.validation_messages import validation_problems  # most files are valid

        raise ManifestError(tuple(validation_problems(error, FileFleet, node, file))) from error
    problems: list[FileProblem] = []

    def add(path: _Path, message: str, fix: str) -> None:
        problems.append(FileProblem(file, node.locate(path).line, format_path(path), message, fix))

    _check_duplicates(content, node, add)
    _check_transfers(content, add)
    _check_sizes(content, limits, add)
    if problems:
        raise ManifestError(tuple(problems))
    routes = [item.to_route(item.namespace, item.name) for item in content.routes]
    claims = [NameClaim(item.namespace, item.name, tuple(item.served_names)) for item in content.models]
    route_claims = [
        object_claim("route", item.namespace, item.name, tuple(item.served_names)) for item in content.routes
    ]
    granted = grant_names([*claims, *route_claims], {claim.namespace for claim in claims})
    models = sorted(
        (_to_model(item, granted[claim.key]) for item, claim in zip(content.models, claims, strict=True)),
        key=lambda model: model.key,
    )
    _check_routes(routes, granted, {model.key: model for model in models}, add)
    _check_adapters(content, add)
    if problems:
        raise ManifestError(tuple(problems))
    instances = {f"{item.namespace}/{item.name}": _to_instances(item) for item in content.models}
    return Fleet(
        version=1,
        membership_epoch=1,
        models={model.key: model for model in models},
        instances={model.key: instances[model.key] for model in models},
        routes={route.key: route for route in sorted(routes, key=lambda route: route.key)},
    )


def _to_model(item: FileModel, names: GrantedNames) -> Model:
    return Model(
        item.namespace,
        item.name,
        item.targets,
        item.routing.preset.value,
        wakes=item.wakes,
        served_names=names.served_names,
        requests=item.to_request_policy(),
        price=item.price.to_token_price() if item.price is not None else None,
        adapters=tuple(adapter.to_adapter() for adapter in item.adapters),
        adapter_slots=item.adapter_slots,
        route_namespaces=frozenset(item.allowed_routes),
        max_attempts=item.routing.max_attempts,
    )


def _to_instances(item: FileModel) -> tuple[Instance, ...]:
    values = [
        Instance(
            id=_instance_id(item, one),
            namespace=item.namespace,
            model=item.name,
            pool=one.pool,
            url=one.url,
            engine=one.engine,
            role=one.role,
            state=one.state,
            adapters=frozenset(one.adapters),
            weight=one.weight,
            profile=one.profile.to_engine_profile(one.profile.name or f"{item.name}-{one.pool}")
            if one.profile
            else None,
            dp_rank=one.dp_rank,
            kv_events=one.kv_events,
            kv_replay=one.kv_replay,
            transfer=one.kv_transfer or item.kv_transfer,
            bootstrap=one.bootstrap,
            pull=one.kv_pull.to_kv_pull() if one.kv_pull is not None else None,
            access=_engine_auth(item, one),
            replica_nano_usd_per_hour=None if one.cost_per_hour is None else units.parse_usd(one.cost_per_hour),
            served_name=served_name_override(one.served_model_name or item.served_model_name, item.name),
        )
        for one in item.instances
    ]
    return tuple(sorted(values, key=lambda instance: instance.id))


def _engine_auth(item: FileModel, one: FileInstance) -> EngineAuth:
    """Returns the TLS and token settings of an instance; its model's where it has none."""
    tls, auth = one.tls or item.tls, one.auth or item.auth
    return EngineAuth(
        ca_file=tls.ca_file if tls is not None else None,
        token_env=auth.token_env if auth is not None else None,
        token_file=auth.token_file if auth is not None else None,
    )


def _instance_id(item: FileModel, one: FileInstance) -> str:
    """Returns the given id, else `<host>/<port>/<rank>`, which other lines of the file do not
    affect.

    An API that others run may serve several models, so its id has the model too.
    """
    if one.id is not None:
        return one.id
    owner = f"{item.namespace}/{item.name}" if one.engine == EXTERNAL_API else ""
    return endpoint_id(one.url, owner, one.dp_rank or 0)


def _check_duplicates(content: FileFleet, node: YamlNode, add: _Add) -> None:
    """Adds a problem for each name or id that is given twice.

    Ids are unique in the whole file, because metrics and logs name instances by id.
    """
    seen: dict[str, int] = {}
    taken: dict[str, int] = {}
    for m, model in enumerate(content.models):
        path: _Path = ("models", m, "name")
        key = f"{model.namespace}/{model.name}"
        if key in seen:
            message = f"the model {key} is already given on line {seen[key]}"
            add(path, message, "put the instances of one model together")
        seen.setdefault(key, node.locate(path).line)
        for i, one in enumerate(model.instances):
            path = ("models", m, "instances", i)
            instance_id = _instance_id(model, one)
            if instance_id in taken:
                message = f"the instance {instance_id} is already given on line {taken[instance_id]}"
                add(path, message, "remove one, or give each a different `id:`")
            taken.setdefault(instance_id, node.locate(path).line)


def _check_transfers(content: FileFleet, add: _Add) -> None:
    """Adds a problem for each prefill instance without KV transfer: it would get no request."""
    for m, model in enumerate(content.models):
        for i, one in enumerate(model.instances):
            if one.role is Role.PREFILL and not (one.kv_transfer or model.kv_transfer):
                fix = f"add `kvTransfer: {' | '.join(KV_TRANSFERS)}` to the instance or its model"
                add(("models", m, "instances", i, "role"), "a Prefill instance needs a KV transfer protocol", fix)


def _check_sizes(content: FileFleet, limits: Limits, add: _Add) -> None:
    counts = (
        ("models", len(content.models), limits.models),
        ("instances", sum(len(model.instances) for model in content.models), limits.instances),
        ("routes", len(content.routes), limits.routes),
        ("adapters", sum(len(model.adapters) for model in content.models), limits.adapters),
    )
    for what, count, limit in counts:
        if count > limit:
            add(("models",), f"there are {count:,} {what}; at most {limit:,} are served", "split the fleet")
