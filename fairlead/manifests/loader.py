"""Loads manifests: files of Fairlead's objects, checked without a cluster.

`load_manifests` reads all files and raises one ManifestError with the problems of all files. It
also checks across documents: names must be unique, and the accelerator of every pool must exist.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from pydantic import ValidationError

from fairlead.adapters.resolution import resolve_adapter
from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.conditions import Reason
from fairlead.api.kinds import served_kinds
from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.pools import Pool
from fairlead.api.strict_model import StrictModel
from fairlead.api.v1alpha1 import (
    API_VERSION,
    AcceleratorClass,
    ModelAdapter,
    ModelDeployment,
    ModelRoute,
    ModelTenant,
)
from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.errors import BadInput, FileProblem, ManifestError
from fairlead.fleet.client_names import (
    NameClaim,
    NameHistory,
    describe_owner,
    grant_names,
    is_model_claim,
    name_owners,
    object_claim,
)
from fairlead.fleet.model import Model
from fairlead.limits import Limits
from fairlead.manifests.files import read_texts
from fairlead.manifests.lint import LintNote, access_modes, lint_claims, lint_spec, lint_template, lint_tenant
from fairlead.manifests.skipped_files import API_GROUP, known_kinds, skip_files
from fairlead.manifests.validation_messages import check_remainder, validation_problems
from fairlead.manifests.yaml_nodes import (
    YamlNode,
    format_path,
    format_value,
    node_from_value,
    parse_documents,
)
from fairlead.names import EXTERNAL_SUFFIX, closest_matches, suggest_fix
from fairlead.routes.model import Route

_ENGINES_WITH_PROFILE_NAMES = (EngineType.SIM, EngineType.EXTERNAL, EngineType.OPENAI)
"""Engines whose pools may name a built-in profile instead of a class: no pod gets a device."""


ManifestObject: TypeAlias = ModelDeployment | AcceleratorClass | ModelTenant | ModelRoute | ModelAdapter
PodLint: TypeAlias = Callable[[ModelDeployment, Mapping[str, AcceleratorClass]], Iterable[LintNote]]
"""Returns notes on the pods of a model; accelerators are by name, paths of the document."""


@dataclass(frozen=True, slots=True)
class Manifests:
    """Checked manifests.

    models: in the order of the files.
    accelerators: by name, including the built-in classes.
    tenants: in the order of the files.
    tenant_files: the files that they are in.
    routes, adapters: in the order of the files.
    notes: lint notes.
    skipped: files of folders that hold no object, with the reason.
    """

    models: tuple[ModelDeployment, ...]
    accelerators: Mapping[str, AcceleratorClass]
    tenants: tuple[ModelTenant, ...] = ()
    tenant_files: tuple[str, ...] = ()
    notes: tuple[FileProblem, ...] = ()
    skipped: tuple[FileProblem, ...] = ()
    routes: tuple[ModelRoute, ...] = ()
    adapters: tuple[ModelAdapter, ...] = ()

    def engine_profile(self, pool: Pool) -> EngineProfile | None:
        """Returns the profile of a pool's accelerator class, or the built-in profile of that name.

        Returns None for an external engine without an accelerator class.
        """
        if pool.accelerator_class_name is None:
            return None
        if pool.accelerator_class_name in self.accelerators:
            return self.accelerators[pool.accelerator_class_name].spec.profile.to_engine_profile(
                pool.accelerator_class_name
            )
        return builtin_profiles()[pool.accelerator_class_name]


@dataclass(frozen=True, slots=True)
class _Document:
    """An object of a file, with the node that it was read from."""

    file: str
    node: YamlNode
    value: ManifestObject


def to_fleet_model(deployment: ModelDeployment) -> Model:
    return deployment.spec.to_model(deployment.metadata.namespace or "default", deployment.metadata.name)


def load_manifests(paths: Sequence[str | Path], *, stdin: BinaryIO | None = None) -> Manifests:
    """Returns the checked manifests of files and folders.

    paths: files, folders (their `*.yaml` and `*.yml` that hold an object), or `-` for standard
    input.
    Raises ManifestError with all problems of all files.
    """
    limits = Limits()
    texts, problems = read_texts(paths, limits=limits, stdin=stdin)
    texts, skipped = skip_files(texts, paths, limits=limits)
    manifests, more = combine_texts(texts, limits=limits, complete=not problems)
    problems += more
    if not problems and not manifests.models:
        names = ", ".join(str(path) for path in paths)
        fix = "add a document with `kind: ModelDeployment`"
        problems.append(FileProblem(names, 1, "(file)", "there is no ModelDeployment", fix))
    if problems:
        raise ManifestError(tuple(problems))
    return replace(manifests, skipped=tuple(skipped))


def read_object(manifest: Mapping[str, Any]) -> ManifestObject:
    """Returns an object of the API server as an API type.

    Raises BadInput with all problems, and with the field of the first one.

    Why a check: the schema of the API server cannot state every rule, and the object may be one of
    another release.
    """
    try:
        return _to_document(node_from_value(manifest), "").value
    except ManifestError as error:
        message = "; ".join(f"{one.field}: {one.message} ({one.fix})" for one in error.problems)
        raise BadInput(message, field=error.problems[0].field) from error


def combine_texts(
    texts: Iterable[tuple[str, str]], *, limits: Limits, complete: bool = True, lint_pods: PodLint | None = None
) -> tuple[Manifests, list[FileProblem]]:
    """Returns the valid objects of the given files, and the problems.

    Unknown accelerators are reported only if every AcceleratorClass could be read.

    complete: False if other files could not be read; unknown accelerators are then not reported.
    lint_pods: None for no notes on rendered pods; it gets models without a problem only.
    """
    documents: list[_Document] = []
    problems: list[FileProblem] = []
    skipped: list[FileProblem] = []
    foreign: list[YamlNode] = []
    deployments: list[tuple[str, YamlNode]] = []
    read = list(texts)
    for file, text in read:
        try:
            nodes = _read_nodes(text, file, limits)
        except ManifestError as error:
            problems += error.problems
            complete = False
            continue
        foreign += filter(_is_foreign, nodes)
        skipped += _foreign_note(nodes, file)
        for node in nodes:
            if not _is_foreign(node):
                found, more = _check_node(node, file)
                documents += found
                problems += more
                if _kind_of(node) == "ModelDeployment":
                    deployments.append((file, node))
                else:
                    # It may be the AcceleratorClass that a pool names.
                    complete &= bool(found)
    problems += _duplicate_names(documents)
    problems += _template_problems(documents, fatal=True)
    accelerators = _accelerators(documents)
    if complete:  # a broken document may be the one that defines the accelerator
        problems += _unknown_accelerators(deployments, accelerators)
    order = {file: number for number, (file, _) in enumerate(read)}
    problems.sort(key=lambda problem: (order[problem.file], problem.line))
    models = tuple(document.value for document in documents if isinstance(document.value, ModelDeployment))
    tenants = tuple(document.value for document in documents if isinstance(document.value, ModelTenant))
    tenant_files = dict.fromkeys(document.file for document in documents if isinstance(document.value, ModelTenant))
    routes = tuple(document.value for document in documents if isinstance(document.value, ModelRoute))
    adapters = tuple(document.value for document in documents if isinstance(document.value, ModelAdapter))
    manifests = Manifests(models, accelerators, tenants, tuple(tenant_files), routes=routes, adapters=adapters)
    notes: list[FileProblem] = []
    if not problems and lint_pods is not None:
        for document in documents:
            for note in lint_pods(document.value, accelerators) if isinstance(document.value, ModelDeployment) else ():
                prefix, found_notes = ("", problems) if note.is_problem else ("note: ", notes)
                found_notes.append(_problem_at(document, note.path, f"{prefix}{note.message}", note.fix))
    if problems:
        return manifests, problems
    return replace(manifests, notes=(*skipped, *_lint_problems(documents, manifests, foreign), *notes)), problems


def parse_manifests(text: str, *, file: str, limits: Limits | None = None) -> list[_Document]:
    """Returns every object of one file, each checked by itself.

    Objects of other API groups are left out. Raises ManifestError with all problems.
    """
    return _to_documents(_read_nodes(text, file, limits or Limits()), file)


def _read_nodes(text: str, file: str, limits: Limits) -> list[YamlNode]:
    """Returns the documents of a file. Raises ManifestError without one."""
    nodes = parse_documents(text, file=file, limits=limits)
    if not nodes:
        problem = FileProblem(
            file, 1, "(document)", "the file is empty", "begin with `apiVersion: " + API_VERSION + "`"
        )
        raise ManifestError((problem,))
    return nodes


def _is_foreign(node: YamlNode) -> bool:
    """Returns True for an object of another API group, such as a Namespace or a Job."""
    if not isinstance(node.value, dict):
        return False
    group, kind = (node.value[name].value if name in node.value else None for name in ("apiVersion", "kind"))
    if not isinstance(group, str) or not isinstance(kind, str) or group.partition("/")[0] == API_GROUP:
        return False
    known = known_kinds()
    return kind not in known and not closest_matches(kind, known, count=1)


def _foreign_note(nodes: Iterable[YamlNode], file: str) -> list[FileProblem]:
    """Returns a note that names the kinds of a file's objects of other API groups."""
    foreign = [node for node in nodes if _is_foreign(node)]
    if not foreign:
        return []
    kinds = ", ".join(dict.fromkeys(str(node.locate(("kind",)).value) for node in foreign))
    message = f"note: not checked: {kinds}"
    fix = "leave it; `kubectl apply --dry-run=server` checks objects of other API groups"
    return [FileProblem(file, foreign[0].line, "(document)", message, fix)]


def _to_documents(nodes: Iterable[YamlNode], file: str) -> list[_Document]:
    """Returns the objects of a file but foreign ones. Raises ManifestError with all problems."""
    checked = [_check_node(node, file) for node in nodes if not _is_foreign(node)]
    problems = [problem for _, found in checked for problem in found]
    if problems:
        raise ManifestError(tuple(problems))
    return [document for documents, _ in checked for document in documents]


def _to_document(node: YamlNode, file: str) -> _Document:
    documents, problems = _check_node(node, file)
    if problems:
        raise ManifestError(tuple(problems))
    return documents[0]


def _check_node(node: YamlNode, file: str) -> tuple[list[_Document], list[FileProblem]]:
    """Returns the object of a document, and its problems.

    With problems, the object lacks the fields that are wrong. There is none if it is then no whole
    object.
    """
    try:
        model = _model_type(node, file)
    except ManifestError as error:
        return [], list(error.problems)
    problems: list[FileProblem] = []
    try:
        value: object = model.model_validate(node.to_python(), by_alias=True, by_name=False)
    except ValidationError as error:
        value, hidden = check_remainder(error, model, node, file)
        problems = [*validation_problems(error, model, node, file), *hidden]
    return [_Document(file, node, value)] if isinstance(value, ManifestObject) else [], problems


def _kind_of(node: YamlNode) -> object:
    kind = node.value.get("kind") if isinstance(node.value, dict) else None
    return None if kind is None else kind.value


def _model_type(node: YamlNode, file: str) -> type[StrictModel]:
    """Returns the type for `apiVersion` and `kind`. Raises ManifestError."""
    if not isinstance(node.value, dict):
        message = "a document must be a mapping with apiVersion, kind, metadata and spec"
        raise ManifestError((FileProblem(file, node.line, "(document)", message, "see examples/01-smallest.yaml"),))
    known = {kind.name: kind.model for kind in served_kinds()}
    problems = []
    group = node.value["apiVersion"].value if "apiVersion" in node.value else None
    if group != API_VERSION:
        message = "is missing" if group is None else f'must be "{API_VERSION}", not {format_value(group)}'
        fix = f"write `apiVersion: {API_VERSION}`"
        problems.append(FileProblem(file, node.locate(("apiVersion",)).line, "apiVersion", message, fix))
    kind = node.value["kind"].value if "kind" in node.value else None
    if not isinstance(kind, str) or kind not in known:
        problems.append(FileProblem(file, node.locate(("kind",)).line, "kind", *_unknown_kind(kind, known)))
    if problems:
        raise ManifestError(tuple(problems))
    return known[str(kind)]


def _unknown_kind(kind: object, known: Iterable[str]) -> tuple[str, str]:
    if kind is None:
        return "is missing", "write `kind: ModelDeployment`"
    fix = suggest_fix(kind, known, "put objects of other kinds into other files")
    return f"must be one of {', '.join(known)}, not {format_value(kind)}", fix


def _duplicate_names(documents: Iterable[_Document]) -> list[FileProblem]:
    """Returns a problem for each object whose kind and name are already used."""
    problems: list[FileProblem] = []
    seen: dict[tuple[str, str], _Document] = {}
    for document in documents:
        value = document.value
        key = (value.kind, value.key)
        first = seen.setdefault(key, document)
        if first is not document:
            where = f"{first.file}:{first.node.locate(('metadata', 'name')).line}"
            message = f"the {key[0]} {key[1]} is already given in {where}"
            problems.append(_problem_at(document, ("metadata", "name"), message, "remove one or rename it"))
    return problems


def _accelerators(documents: Iterable[_Document]) -> dict[str, AcceleratorClass]:
    objects = (document.value for document in documents)
    own = {value.metadata.name: value for value in objects if isinstance(value, AcceleratorClass)}
    return {**builtin_accelerators(), **own}


def _lint_problems(
    documents: Sequence[_Document], manifests: Manifests, foreign: Iterable[YamlNode]
) -> Iterator[FileProblem]:
    claims = access_modes(node.to_python() for node in foreign)
    for document in documents:
        notes: list[LintNote] = []
        if isinstance(document.value, ModelDeployment):
            spec, namespace = document.value.spec, document.value.metadata.namespace or "default"
            notes += lint_spec(spec, manifests.engine_profile, manifests.accelerators)
            notes += lint_claims(spec, claims.get(namespace, {}))
        elif isinstance(document.value, ModelTenant):
            notes += lint_tenant(document.value)
        for note in notes:
            yield _problem_at(document, note.path, f"note: {note.message}", note.fix)
    yield from _template_problems(documents, fatal=False)
    yield from _lint_served_names(documents)
    models = {model.key: model for model in manifests.models}
    yield from _lint_targets(documents, models)
    yield from _lint_bases(documents, models)


def _problem_at(document: _Document, path: tuple[str | int, ...], message: str, fix: str) -> FileProblem:
    return FileProblem(document.file, document.node.locate(path).line, format_path(path), message, fix)


def _template_problems(documents: Iterable[_Document], *, fatal: bool) -> Iterator[FileProblem]:
    """Yields the problems of pod templates.

    fatal: False for notes on them instead.
    """
    for document in documents:
        spec = document.value.spec if isinstance(document.value, ModelDeployment) else None
        downloads = spec is not None and spec.adapters is not None and spec.adapters.download is not None
        for index, pool in enumerate(() if spec is None else spec.pools):
            template = {} if pool.template is None else pool.template.spec
            for note in lint_template(template, downloads_adapters=downloads):
                if note.is_problem is fatal:
                    path = ("spec", "pools", index, "template", "spec", *note.path)
                    yield _problem_at(document, path, note.message if fatal else f"note: {note.message}", note.fix)


def _lint_served_names(documents: Sequence[_Document]) -> Iterator[FileProblem]:
    """Yields a note for each name by which clients would not reach a model, route or adapter."""
    claims = {}
    models_first = sorted(documents, key=lambda document: not isinstance(document.value, ModelDeployment))
    for document in models_first:
        claim = _name_claim(document.value)
        if claim is not None:
            claims[claim.key] = claim, document
    listed = [claim for claim, _ in claims.values()]
    namespaces = {claim.namespace for claim in listed if is_model_claim(claim.key)}
    replaced = [claim for claim in listed if claim.key.removesuffix(EXTERNAL_SUFFIX) in claims.keys() - {claim.key}]
    history = NameHistory(
        remembered={name: claim.key for claim in replaced for name in (claim.name, *claim.served_names)}
    )
    granted = grant_names(listed, namespaces, name_owners(listed, namespaces, history))
    for key, grant in granted.items():
        claim, document = claims[key]
        is_model = is_model_claim(key)
        for refused in grant.refused:
            is_cut_over = refused.owner == f"{key}{EXTERNAL_SUFFIX}"
            if refused.name not in claim.served_names and is_model and not is_cut_over:
                continue
            why = (
                f"{describe_owner(refused.owner)} has it"
                if refused.owner is not None
                else "it begins with a namespace that holds models"
            )
            path = ("spec", "model", "servedNames") if is_model else ("spec", "servedNames")
            if refused.name not in claim.served_names:
                path = ("metadata", "name")
            what = document.value.kind.removeprefix("Model").lower() if not is_model else "model"
            message = f"note: clients do not reach the {what} by {refused.name}: {why}"
            fix = "remove it, or rename one"
            if is_cut_over:
                fix = "leave it: a cut-over gives the name over later, with the annotation fairlead.io/release-names"
            yield _problem_at(document, path, message, fix)


def _name_claim(value: ManifestObject) -> NameClaim | None:
    """Returns the names that an object claims; None for kinds without names for clients."""
    namespace, name = value.metadata.namespace or "default", value.metadata.name
    if isinstance(value, ModelDeployment):
        return NameClaim(namespace, name, tuple(value.spec.model.served_names))
    if isinstance(value, ModelRoute):
        return object_claim("route", namespace, name, tuple(value.spec.served_names))
    if isinstance(value, ModelAdapter):
        return object_claim("adapter", namespace, name, tuple(value.spec.served_names))
    return None


def _lint_bases(documents: Sequence[_Document], models: Mapping[str, ModelDeployment]) -> Iterator[FileProblem]:
    """Yields a note for each adapter that the engines of its base would not load."""
    for document in documents:
        if not isinstance(document.value, ModelAdapter):
            continue
        spec, namespace = document.value.spec, document.value.key.partition("/")[0]
        base = models.get(f"{namespace}/{spec.base}")
        found = resolve_adapter(spec, document.value.metadata.name, None if base is None else base.spec)
        if found.source is not None:
            continue
        fix = "correct the adapter or its base" if base is not None else "leave it if the base is in another file"
        path = ("spec", "source") if found.reason is Reason.CLAIM_NOT_MOUNTED else ("spec", "base")
        yield _problem_at(document, path, f"note: {found.message}", fix)


def _lint_targets(documents: Sequence[_Document], models: Mapping[str, ModelDeployment]) -> Iterator[FileProblem]:
    """Yields a note for each target of a route that is no model of the files, or not allowed."""
    for document in documents:
        if not isinstance(document.value, ModelRoute):
            continue
        for path, model in document.value.to_route().model_paths():
            namespace = document.value.metadata.namespace or "default"
            if model in models and not to_fleet_model(models[model]).takes_routes_of(namespace):
                message = f"note: {model} takes no routes of {namespace}: gateways do not follow it"
                fix = f"add `allowedRoutes: [{namespace}]` to its spec, or remove it here"
                yield _problem_at(document, ("spec", *path), message, fix)
            elif model not in models:
                fix = suggest_fix(model, models, "leave it if the model is in another file")
                message = f"note: no model of these files is {format_value(model)}"
                yield _problem_at(document, ("spec", *path), message, fix)


def _unknown_accelerators(
    nodes: Iterable[tuple[str, YamlNode]], accelerators: Mapping[str, AcceleratorClass]
) -> list[FileProblem]:
    """Returns a problem for each pool that names an unknown accelerator.

    It reads the text, since a document with other problems may be no valid object.
    """
    problems = []
    for file, node in nodes:
        spec = node.to_python().get("spec")
        engine, pools = (spec.get(name) for name in ("engine", "pools")) if isinstance(spec, dict) else (None, None)
        kind = engine.get("type") if isinstance(engine, dict) else None
        known = [*accelerators, *(builtin_profiles() if kind in _ENGINES_WITH_PROFILE_NAMES else ())]
        for index, pool in enumerate(pools if isinstance(pools, list) else ()):
            name = pool.get("acceleratorClassName") if isinstance(pool, dict) else None
            if not isinstance(name, str) or name in known:
                continue
            path: tuple[str | int, ...] = ("spec", "pools", index, "acceleratorClassName")
            otherwise = f"add an AcceleratorClass, give its file too, or use {', '.join(sorted(known))}"
            fix = suggest_fix(name, known, otherwise)
            message = f"no AcceleratorClass and no built-in one is called {format_value(name)}"
            if name in builtin_profiles():
                message += ", a built-in profile"
                fix = "name a class; an AcceleratorClass may say `profile: {preset: " + name + "}`"
            problems.append(FileProblem(file, node.locate(path).line, format_path(path), message, fix))
    return problems


def plan_routes(manifests: Manifests) -> tuple[Route, ...]:
    """Returns the routes of files that are all there is, as in local mode.

    What a cluster shows as a condition of a route is an error here. Raises BadInput, with the
    field, for a target that is no model of the files, or that does not allow the route. It also
    raises for a name that a model or another route has.
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
    claims = [claim for claim in map(_name_claim, models.values()) if claim is not None]
    keys = {document.key: claim for document in manifests.routes if (claim := _name_claim(document)) is not None}
    granted = grant_names([*claims, *keys.values()], {claim.namespace for claim in claims})
    for key, claim in keys.items():
        for refused in granted[claim.key].refused:
            owner = "a namespace of models" if refused.owner is None else describe_owner(refused.owner)
            message = f"clients cannot reach the route {key} by {refused.name}: it belongs to {owner}"
            field = "metadata.name" if refused.name == claim.name else "spec.servedNames"
            raise BadInput(message, field=field, hint="use another name")
    return tuple(routes)
