"""KServe: `InferenceService` with the Hugging Face runtime, and its `ServingRuntime`s."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from fairlead_cli.migration import assembly
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.formats.kserve import OWN_PREFIXES
from fairlead_cli.migration.pod_spec import other_engine, read_pod

_RUNTIME_KINDS: Final = ("ServingRuntime", "ClusterServingRuntime")
_CONTAINER: Final = "kserve-container"
_FORMATS: Final = ("huggingface", "vLLM", "vllm")
_RENAMED_FLAGS: Final = {
    "--model-name": "--served-model-name",
    "--model-id": "--model",
    "--model-revision": "--revision",
    "--max-length": "--max-model-len",
}
_WRAPPER_FLAGS: Final = ("--backend", "--task", "--model-dir", "--disable-lower-case", "--max-log-len")
_STOCK_RUNTIME: Final = "kserve-huggingfaceserver"
_MODE: Final = "serving.kserve.io/deploymentMode"
_KNATIVE: Final = ("Serverless", "Knative")
"""Modes in which Knative scales pods. KServe's ConfigMap has the mode of other services."""
_ROUTE_PREFIX: Final = (
    "its OpenAI paths begin with /openai/v1, and gateways call /v1: an empty KSERVE_OPENAI_ROUTE_PREFIX restarts its "
    "pods and ends /openai/v1, so move clients first, or convert without --external"
)
_SCALED_BY_REQUESTS: Final = (
    "Knative, if it scales this service, sees no requests that reach pods directly, and removes busy pods: set minReplicas to "
    "the number of pods that you need, or use deploymentMode Standard"
)
_CANARY: Final = "canaryTrafficPercent"
_WHOLE: Final = 100
_IS_MISSING: Final = "is not among the files: give its manifest too, before this one, for a ModelRoute between both"
_CANARY_PODS: Final = (
    "canaryTrafficPercent: gateways call the pods of both revisions, by their load: convert the two without "
    "--external for a ModelRoute"
)
REASONS: Final = {
    "spec.predictor.model.modelFormat": "the engine is vLLM",
    "spec.predictor.model.protocolVersion": "Fairlead speaks the OpenAI API alone",
    **{
        f"spec.predictor.{name}": assembly.SCALES_FOR_TARGETS
        for name in ("scaleMetric", "scaleTarget", "scaleMetricType")
    },
    "spec.predictor.autoScaling": assembly.SCALES_FOR_TARGETS,
    "spec.predictor.containerConcurrency": "Fairlead queues by latency target, not by a number of requests",
    "spec.predictor.timeout": "the gateway's limits are in its settings",
    "spec.predictor.deploymentStrategy": "set spec.rollout",
    "spec.supportedModelFormats": "the engine is vLLM",
    "spec.protocolVersions": "Fairlead speaks the OpenAI API alone",
    "spec.annotations": "Fairlead's gateway relays the engines' metrics",
    "spec.multiModel": "an engine serves one model",
    "spec.predictor.workerSpec": "write pools[].parallelism.nodes: Fairlead's pods of one instance have one template",
    "spec.transformer": "Fairlead has no transformers",
    "spec.explainer": "Fairlead has no explainers",
}


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns a ModelDeployment for each InferenceService.

    Two of one name, the second with a canary percent, also give a ModelRoute between them.
    """
    runtimes = {str((d.peek("metadata") or {}).get("name")): d for d in documents if d.peek("kind") in _RUNTIME_KINDS}
    services = [document for document in documents if document.peek("kind") not in _RUNTIME_KINDS]
    drafts = [_read_service(document, runtimes, options) for document in services]
    routes = [] if options.external else _split_canaries(drafts)
    drafts = _join_canaries(drafts) if options.external else drafts
    converted = [assembly.assemble(draft, options) for draft in drafts]
    converted += [assembly.assemble_route(route) for route in routes]
    named = {str(s.section("spec").section("predictor").section("model").peek("runtime")) for s in services}
    for name, runtime in runtimes.items():
        assembly.read_helper(runtime, is_used=name in named)
    return converted


def _read_service(document: FieldReader, runtimes: Mapping[str, FieldReader], options: MigrationOptions) -> ModelDraft:
    predictor = document.section("spec").section("predictor")
    draft = ModelDraft(document, **assembly.metadata_of(document, own_prefixes=OWN_PREFIXES))
    pool = PoolDraft(predictor, port=8080)
    pool.selector = {"serving.kserve.io/inferenceservice": draft.name, "component": "predictor"}
    draft.pools = [pool]
    model = predictor.section("model")
    containers = predictor.entries("containers")
    container = model if model else next(iter(containers), None)
    if container is None:
        raise predictor.error("model", "is missing", "Fairlead converts predictors with a model or a container")
    model_format = model.section("modelFormat").text("name")
    model.section("modelFormat").skip("version")
    if model and model_format not in _FORMATS:
        raise model.error("modelFormat", f"{model_format} is not a format of vLLM", "Fairlead serves language models")
    _read_engine(predictor, container, pool, bool(model))
    _read_runtime(model, runtimes, pool)
    _read_source(model if model else predictor, pool, draft)
    _read_scaling(predictor, pool, draft)
    if options.external:
        _note_external(document, wrapped=bool(model))
    return draft


def _join_canaries(drafts: Sequence[ModelDraft]) -> list[ModelDraft]:
    """Returns one draft for each service: pods of both revisions have its labels."""
    services: dict[tuple[str, str], ModelDraft] = {}
    for draft in drafts:
        percent = draft.reader.section("spec").section("predictor").integer(_CANARY)
        if percent is not None and percent < _WHOLE:
            draft.reader.note("", _CANARY_PODS)
            services.setdefault((draft.namespace, draft.name), draft)
        else:
            services[draft.namespace, draft.name] = draft
    return list(services.values())


def _split_canaries(drafts: Sequence[ModelDraft]) -> list[assembly.RouteDraft]:
    """Returns a route for each canary with its stable revision, and renames the two models."""
    stable: dict[tuple[str, str], ModelDraft] = {}
    routes = []
    for draft in drafts:
        predictor = draft.reader.section("spec").section("predictor")
        percent = predictor.integer(_CANARY)
        key = (draft.namespace, draft.name)
        if percent is None or percent >= _WHOLE:
            stable[key] = draft
        elif key not in stable:
            predictor.note(
                _CANARY, f"the revision with the other {_WHOLE - percent} percent {_IS_MISSING}", Outcome.DROPPED
            )
        else:
            predictor.note(_CANARY, f"it is the weight of {draft.name}-canary in a route: {assembly.BY_CONVERSATION}")
            routes.append(_canary_route(stable.pop(key), draft, percent))
    return routes


def _canary_route(stable: ModelDraft, canary: ModelDraft, percent: int) -> assembly.RouteDraft:
    names = dict.fromkeys((stable.name, *stable.served_names, *canary.served_names))
    route = assembly.RouteDraft({}, name=stable.name, namespace=stable.namespace, served_names=list(names))
    weights = assembly.whole_weights([Fraction(_WHOLE - percent), Fraction(percent)])
    for draft, suffix, weight in zip((stable, canary), ("stable", "canary"), weights, strict=True):
        draft.name = assembly.manifest_name(f"{draft.name}-{suffix}", MigrationOptions())
        draft.served_names = [draft.name]
        route.targets[draft.name] = weight
    return route


def _note_external(document: FieldReader, *, wrapped: bool) -> None:
    if wrapped:
        document.note("", _ROUTE_PREFIX, Outcome.REQUIRED)
    mode = (document.section("metadata").peek("annotations") or {}).get(_MODE, _KNATIVE[0])
    if mode in _KNATIVE:
        document.note("", _SCALED_BY_REQUESTS, Outcome.REQUIRED)


def _read_engine(predictor: FieldReader, container: FieldReader, pool: PoolDraft, wrapped: bool) -> None:
    other = other_engine([container])
    if other is not None:
        raise container.error("image", other.problem, other.hint)
    read_pod(predictor, container, pool, _to_vllm(container.texts("args"), container) if wrapped else None)
    if wrapped:
        container.drop("image", "vLLM's own image runs instead of KServe's Hugging Face server")


def _to_vllm(words: Sequence[str], container: FieldReader) -> list[str]:
    """Returns the arguments of KServe's Hugging Face server in vLLM's words."""
    kept: list[str] = []
    skipping = False
    for word in words:
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if word.startswith("--"):
            skipping = flag in _WRAPPER_FLAGS
            if skipping:
                container.note("args", f"{flag}: it is a flag of KServe's server", Outcome.DROPPED)
            else:
                kept.append(f"{_RENAMED_FLAGS.get(flag, flag)}{equals}{value}")
        elif not skipping:
            kept.append(word)
    return kept


def _read_runtime(model: FieldReader, runtimes: Mapping[str, FieldReader], pool: PoolDraft) -> None:
    name = model.text("runtime")
    if not name:
        return
    if name not in runtimes and name.startswith(_STOCK_RUNTIME):
        model.note("runtime", f"{name} is KServe's own: vLLM itself runs in its place", Outcome.DROPPED)
        return
    if name not in runtimes:
        model.note("runtime", f"{name} is not among the files: give it too, for its arguments", Outcome.DROPPED)
        return
    spec = runtimes[name].section("spec")
    container = next((c for c in spec.entries("containers") if c.peek("name") == _CONTAINER), None)
    if container is None:
        return
    base = PoolDraft(container)
    read_pod(spec, container, base)
    own = pool.engine.flags
    pool.engine.flags.kept = base.engine.flags.kept + own.kept
    pool.engine.type, pool.engine.image = base.engine.type, base.engine.image
    known = {variable["name"] for variable in pool.engine.env}
    pool.engine.env = [variable for variable in base.engine.env if variable["name"] not in known] + pool.engine.env
    pool.engine.flags.parallelism = base.engine.flags.parallelism | own.parallelism
    pool.devices.count = pool.devices.count or base.devices.count
    pool.devices.resource = pool.devices.resource or base.devices.resource
    pool.devices.hints += base.devices.hints
    pool.devices.signs += base.devices.signs
    pool.pod = base.pod | pool.pod
    pool.container = base.container | pool.container


def _read_source(source: FieldReader, pool: PoolDraft, draft: ModelDraft) -> None:
    flags = pool.engine.flags
    uri = source.text("storageUri")
    text = uri or flags.model
    if not text:
        raise source.error("storageUri", "the manifest names no model", "add storageUri or --model_id")
    draft.uri, revision = assembly.model_uri(text, source, "storageUri" if uri else "args")
    if revision:
        draft.model["revision"] = revision
    draft.served_names = flags.served_names or [draft.name]


def _read_scaling(predictor: FieldReader, pool: PoolDraft, draft: ModelDraft) -> None:
    pool.min_replicas = predictor.number("minReplicas")
    if high := predictor.integer("maxReplicas"):
        pool.max_replicas = max(high, pool.min_replicas)
    draft.spec |= assembly.scaling_spec([pool])
