"""kthena: `ModelServer`s become external models, and `ModelRoute`s become routes to them."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fairlead_cli.migration import assembly
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome

GROUP: Final = "networking.serving.volcano.sh"
_DEFAULT_WEIGHT: Final = 100
_EXTERNAL: Final = MigrationOptions(external=True)
_NO_ADAPTERS: Final = "write a ModelAdapter for each, and call them by their names"
REASONS: Final = {
    "spec.parentRefs": "clients call Fairlead's gateway, without a Gateway of Kubernetes",
    "spec.rateLimit": "limits belong to tenants: set spec.limits of a ModelTenant",
    "spec.loraAdapters": _NO_ADAPTERS,
    "spec.kvConnector": "an external model hands no KV over between pods",
    "spec.trafficPolicy": "set spec.routing.maxAttempts for its retries; deadlines are the gateway's own",
}


_Key = tuple[str, str]
"""Namespace and name of a ModelServer."""
_Rule = tuple[dict[str, str], dict[str, int]]
"""A rule of a route: its headers, which are empty if it takes all requests, and its targets."""


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns an external ModelDeployment for each ModelServer, and a ModelRoute for each route."""
    servers = {
        _namespace_and_name(document): document for document in documents if document.peek("kind") == "ModelServer"
    }
    routes = [document for document in documents if document.peek("kind") == "ModelRoute"]
    drafts = [(document, draft) for document in routes if (draft := _read_route(document, servers))]
    engine_names = {
        key: document.section("spec").text("model") or _name_in_requests(key, drafts) or key[1]
        for key, document in servers.items()
    }
    manifests = [_convert_server(document, engine_names[key], options) for key, document in servers.items()]
    taken = {manifest["metadata"]["name"] for manifest in manifests}
    return manifests + [
        assembly.assemble_route(draft, taken=taken)
        for document, draft in drafts
        if _needs_route(document, draft, engine_names)
    ]


def _namespace_and_name(document: FieldReader) -> _Key:
    metadata = document.peek("metadata") or {}
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")


def _model_name(server: str) -> str:
    return assembly.manifest_name(server, _EXTERNAL)


def _name_in_requests(key: _Key, drafts: Sequence[tuple[FieldReader, assembly.RouteDraft]]) -> str:
    """Returns the name in the requests to a ModelServer without `spec.model`; kthena keeps it."""
    for _, draft in drafts:
        lists = [draft.targets, *(targets for _, targets in draft.overrides)]
        if draft.namespace == key[0] and any(_model_name(key[1]) in targets for targets in lists):
            return draft.served_names[0]
    return ""


def _convert_server(document: FieldReader, engine_name: str, options: MigrationOptions) -> dict[str, Any]:
    """Returns the external model of a ModelServer. ``engine_name``: what its engines call it."""
    spec = document.section("spec")
    spec.skip("inferenceEngine")
    draft = ModelDraft(document, f"hf://{engine_name}", served_names=[engine_name], **assembly.metadata_of(document))
    pool = PoolDraft(spec)
    selector = spec.section("workloadSelector")
    pool.selector = {name: str(value) for name, value in selector.mapping("matchLabels").items()}
    groups = selector.section("pdGroup")
    if groups:
        pool.selector |= {name: str(value) for name, value in groups.mapping("decodeLabels").items()}
        groups.skip("groupKey")
        groups.drop("prefillLabels", "requests go to the decode pods alone; these pods get none")
    port = spec.section("workloadPort")
    pool.port = port.integer("port") or pool.port
    if port.text("protocol") == "https":
        port.note("protocol", "gateways call pods by HTTP: let the engines serve it", Outcome.REQUIRED)
    draft.pools = [pool]
    return assembly.assemble(draft, replace(options, external=True))


def _read_route(document: FieldReader, servers: Container[_Key]) -> assembly.RouteDraft | None:
    """Returns the route; None, with a note, where a ModelRoute cannot stand for it."""
    spec = document.section("spec")
    fields = assembly.metadata_of(document)
    model_name = spec.text("modelName")
    rules = [rule for entry in spec.entries("rules") if (rule := _read_rule(entry, document, model_name, servers))]
    if not model_name:
        spec.note("modelName", f"a route needs it: {_NO_ADAPTERS}", Outcome.LEFT_OUT)
        return None
    last = next((number for number, rule in enumerate(rules) if not rule[0]), None)
    if last is None:
        reason = "no rule takes the requests without these headers: add one without modelMatch to convert the route"
        spec.note("rules", reason, Outcome.LEFT_OUT)
        return None
    if last + 1 < len(rules):
        spec.note("rules", f"rules[{last}] takes every request: no rule after it is reached", Outcome.DROPPED)
    return assembly.RouteDraft(rules[last][1], rules[:last], served_names=[model_name], **fields)


def _read_rule(entry: FieldReader, document: FieldReader, model_name: str, servers: Container[_Key]) -> _Rule | None:
    """Returns the rule; None, with a note, if its conditions are none of a ModelRoute."""
    entry.skip("name")
    targets: dict[str, int] = {}
    for target in entry.entries("targetModels"):
        server = target.text("modelServerName")
        weight = target.integer("weight")
        if (_namespace_and_name(document)[0], server) not in servers:
            target.note("modelServerName", f"{server} is not among the files: give it too, with -f", Outcome.REQUIRED)
        name = _model_name(server)
        targets[name] = targets.get(name, 0) + (_DEFAULT_WEIGHT if weight is None else weight)
    if len(targets) > 1:
        entry.note("targetModels", assembly.BY_CONVERSATION)
    headers = _read_conditions(entry.section("modelMatch"), entry, model_name)
    return None if headers is None else (headers, targets)


def _read_conditions(match: FieldReader, entry: FieldReader, model_name: str) -> dict[str, str] | None:
    """Returns the headers of a rule; None, with a note, for other conditions."""
    headers: dict[str, str] = {}
    reasons = []
    for name, condition in match.mapping("headers").items():
        if isinstance(condition, dict) and list(condition) == ["exact"]:
            headers[name] = str(condition["exact"])
        else:
            reasons.append(f"modelMatch.headers.{name}: a route compares whole values of headers")
    if match.mapping("uri") not in ({}, {"prefix": "/"}):
        reasons.append("modelMatch.uri: a route takes all paths of the API")
    wanted = match.section("body").text("model")
    if wanted and wanted != model_name:
        reasons.append(f"modelMatch.body.model: {wanted} is another name than modelName: {_NO_ADAPTERS}")
    if not reasons:
        return headers
    reasons.append("its requests go to the next rule that takes them")
    entry.note("", "; ".join(reasons), Outcome.DROPPED)
    return None


def _needs_route(document: FieldReader, draft: assembly.RouteDraft, engine_names: Mapping[_Key, str]) -> bool:
    """Returns False, with a note, for a name that the engines themselves have."""
    name = draft.served_names[0]
    owners = [key[1] for key, engine_name in engine_names.items() if engine_name == name]
    if not owners:
        return True
    spec = document.section("spec")
    if not draft.overrides and list(draft.targets) == [_model_name(owners[0])]:
        spec.note("modelName", f"{_model_name(owners[0])} has the name itself, without a route")
        return False
    reason = (
        f"{name} is what the engines of {', '.join(owners)} call the model, and a route cannot share the name: "
        "start them with another --served-model-name"
    )
    spec.note("modelName", reason, Outcome.LEFT_OUT)
    return False
