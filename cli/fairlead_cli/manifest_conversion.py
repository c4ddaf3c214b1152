"""``fairlead convert``: writes Fairlead's manifests from those of other systems."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from cyclopts import Parameter

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.v1alpha1 import API_VERSION, AcceleratorClass, ModelDeployment
from fairlead.engine_profile import builtin_profiles
from fairlead.errors import BadInput, ManifestError, first_line, plain_text
from fairlead.limits import Limits
from fairlead.manifests.files import read_texts
from fairlead.manifests.lint import lint_stopped_pools
from fairlead.manifests.loader import read_object
from fairlead.manifests.yaml_nodes import format_path, parse_documents
from fairlead.runtime.atomic_write import write_atomic
from fairlead_cli.manifest_lint import Files, MoreFiles, collect_paths
from fairlead_cli.migration.drafts import MigrationOptions
from fairlead_cli.migration.field_reader import TO_GATEWAY, WHOLE_OBJECT, FieldReader, Note, Outcome
from fairlead_cli.migration.formats import (
    aibrix,
    kserve,
    kserve_predictor,
    kthena,
    kubeai,
    litellm,
    llm_d,
    production_stack,
    workloads,
)
from fairlead_cli.migration.formats.workloads import unread_engine
from fairlead_cli.output import format_document
from fairlead_cli.rendered_pods import lint_pods

_OTHER_GROUPS: Final = (
    ".aibrix.ai",
    "production-stack.vllm.ai",
    "llm-d.ai",
    ".serving.volcano.sh",
    "inference.networking.k8s.io",
    "inference.networking.x-k8s.io",
)
_OTHER_SERVERS: Final = frozenset(
    (
        ("ray.io", "RayService"),
        ("kaito.sh", "Workspace"),
        ("kaito.sh", "InferenceSet"),
        ("nvidia.com", "DynamoGraphDeployment"),
        ("apps.nvidia.com", "NIMService"),
        ("airunway.ai", "ModelDeployment"),
        ("inference.llmkube.dev", "InferenceService"),
    )
)
"""(API group, kind) of objects that serve models in systems that no conversion reads."""
_NO_FIELD: Final = "convert does not read this field: see the reference of the API for one that says it"

_CHART_VALUES: Final = "; of a Helm chart, convert what `helm template` renders"
_RECREATE: Final = (
    "; a new pod starts before the old one ends, and cannot mount a ReadWriteOnce claim on another node: use a claim "
    "for several nodes, keep the pods on one node, or set minReplicas to 0 and back for each change"
)
_HTTP_ROUTES: Final = ("HTTPRoute", "Ingress", "VirtualService")
_FOR_OLD_ENGINES: Final = (
    *(*_HTTP_ROUTES, "GRPCRoute", "DestinationRule", "NetworkPolicy"),
    *("ServiceMonitor", "PodMonitor", "PodDisruptionBudget"),
)
_OTHER_OBJECTS: Final = {
    "ModelBooster": "kthena makes a ModelServing of it: convert that one (kubectl get modelservings -o yaml)"
}
_SERVE_NO_MODEL: Final = (
    *("InferencePool", "InferenceModel", "InferenceObjective", "InferenceModelRewrite", "VLLMRouter", "CacheServer"),
    *("KVCache", "AutoscalingPolicy", "AutoscalingPolicyBinding", "PodGroup", "PodSet"),
)
"""Kinds of the other systems that route, scale or store, but run no engine."""
_LEFT_OUT: Final = (
    "nothing is written while a model is left out: correct it, or take it out of the files to convert the rest"
)
_GIVE_VALUES: Final = "it installs a chart: if that runs engines, give its values as a file; else apply it as before"
_OLD_ENGINES: Final = "it serves the old engines: keep it until the cut-over, then delete it with them"


@dataclass(frozen=True, slots=True)
class System:
    """A format that can be converted.

    kinds: (API group, kind) of its objects.
    key: top-level key of its values file or configuration; empty if it has objects.
    reasons: field of its objects to the reason that it is not carried over.
    takes_scalers: it reads the autoscalers of Kubernetes and KEDA, too.
    converts_engines: False if the output is external models in any case.
    """

    name: str
    convert: Callable[[Sequence[FieldReader], MigrationOptions], list[dict[str, Any]]]
    reasons: Mapping[str, str]
    kinds: frozenset[tuple[str, str]] = frozenset()
    key: str = ""
    converts_engines: bool = True
    takes_scalers: bool = False


def _kinds(group: str, *names: str) -> frozenset[tuple[str, str]]:
    return frozenset((group, name) for name in names)


SYSTEMS: Final = (
    System(
        "KServe LLMInferenceService",
        kserve.convert_models,
        kserve.REASONS,
        _kinds("serving.kserve.io", "LLMInferenceService", "LLMInferenceServiceConfig"),
    ),
    System(
        "KServe InferenceService",
        kserve_predictor.convert_models,
        kserve_predictor.REASONS,
        _kinds("serving.kserve.io", "InferenceService", "ServingRuntime", "ClusterServingRuntime"),
    ),
    System(
        "AIBrix",
        aibrix.convert_models,
        aibrix.REASONS,
        _kinds("orchestration.aibrix.ai", "StormService")
        | _kinds("autoscaling.aibrix.ai", "PodAutoscaler")
        | _kinds("model.aibrix.ai", "ModelAdapter"),
        takes_scalers=True,
    ),
    System("KubeAI", kubeai.convert_models, kubeai.REASONS, _kinds("kubeai.org", "Model")),
    System(
        "kthena",
        kthena.convert_models,
        kthena.REASONS,
        _kinds(kthena.GROUP, "ModelServer", "ModelRoute"),
        converts_engines=False,
    ),
    System(
        "Workloads",
        workloads.convert_models,
        workloads.REASONS,
        _kinds(workloads.KTHENA_GROUP, "ModelServing"),
        takes_scalers=True,
    ),
    System("llm-d modelservice", llm_d.convert_models, llm_d.REASONS, key="modelArtifacts"),
    System("LiteLLM", litellm.convert_models, litellm.REASONS, key="model_list", converts_engines=False),
    System("vLLM production-stack", production_stack.convert_models, production_stack.REASONS, key="servingEngineSpec"),
)


@dataclass(frozen=True, slots=True)
class Migration:
    """Converted manifests, and the notes about fields that they do not hold."""

    manifests: tuple[dict[str, Any], ...]
    notes: tuple[Note, ...]


def system_of(document: object) -> System | None:
    """Returns the system that a document belongs to; None for any other document."""
    if not isinstance(document, dict):
        return None
    group = str(document.get("apiVersion", "")).partition("/")[0]
    for system in SYSTEMS:
        if (group, document.get("kind")) in system.kinds or (system.key and system.key in document):
            return system
    if document.get("kind") in ("Deployment", "Service") and _has_aibrix_label(document):
        return next(system for system in SYSTEMS if system.name == "AIBrix")
    if workloads.is_workload(document):
        return next(system for system in SYSTEMS if system.name == "Workloads")
    return None


def is_unsupported(document: object) -> bool:
    """Returns True for an object of a serving system that no conversion reads."""
    if not isinstance(document, dict) or system_of(document) is not None:
        return False
    group = str(document.get("apiVersion", "")).partition("/")[0]
    is_known = any(group == known for system in SYSTEMS for known, _ in system.kinds)
    return is_known or group.endswith(_OTHER_GROUPS) or (group, document.get("kind")) in _OTHER_SERVERS


def migrate(documents: Iterable[tuple[str, dict[str, Any]]], options: MigrationOptions) -> Migration:
    """Converts documents, given with their files.

    Raises BadInput for a document that cannot be converted.
    """
    readers: dict[str, list[FieldReader]] = {}
    given = list(documents)
    for file, document in given:
        system = system_of(document) or _system_of_target(document, given)
        assert system is not None
        readers.setdefault(system.name, []).append(FieldReader.of_document(document, file))
    manifests: list[dict[str, Any]] = []
    notes: list[Note] = []
    for system in SYSTEMS:
        for reader in readers.get(system.name, ()):
            reader.skip("apiVersion", "kind", "status")
        try:
            manifests += system.convert(readers.get(system.name, ()), options)
        except BadInput as error:
            raise BadInput(f"{system.name}: {error.message}", field=error.field, hint=error.hint) from error
        routes_only = options.external and system.converts_engines
        for reader in readers.get(system.name, ()):
            if routes_only:
                notes += [note for note in reader.notes if _is_for_external(note)]
            else:
                notes += reader.notes + list(_unread_notes(reader, system.reasons))
    return Migration(tuple(manifests), tuple(notes))


def _system_of_target(scaler: Mapping[str, Any], documents: Iterable[tuple[str, dict[str, Any]]]) -> System | None:
    """Returns the system of an autoscaler's target, if its reader takes autoscalers."""
    target = workloads.scaler_target(FieldReader.of_document(scaler, ""))
    for _, document in documents:
        system = system_of(document)
        if (
            system is not None
            and system.takes_scalers
            and target == workloads.target_key(FieldReader.of_document(document, ""))
        ):
            return system
    return None


def _has_aibrix_label(document: Mapping[str, Any]) -> bool:
    labels = (document.get("metadata") or {}).get("labels") or {}
    template = ((document.get("spec") or {}).get("template") or {}).get("metadata") or {}
    return aibrix.NAME_LABEL in labels or aibrix.NAME_LABEL in (template.get("labels") or {})


def _is_for_external(note: Note) -> bool:
    """Returns True for a note about the object as a whole; a field of an engine stays as it is."""
    return note.outcome in (Outcome.REQUIRED, Outcome.LEFT_OUT) or (
        note.outcome is Outcome.CHANGED and note.field == WHOLE_OBJECT
    )


def _unread_notes(reader: FieldReader, reasons: Mapping[str, str]) -> list[Note]:
    """Returns a note for each field that was not read; fields below one reason share a note."""
    grouped: dict[str, list[str]] = {}
    notes: list[Note] = []
    for path in reader.unread():
        plain = format_path(tuple(step for step in path if isinstance(step, str)))
        matching = [field for field in reasons if plain == field or plain.startswith(f"{field}.")]
        if not matching:
            notes.append(Note(reader.place, format_path(path), Outcome.DROPPED, _NO_FIELD))
            continue
        field = max(matching, key=len)
        grouped.setdefault(field, []).append(plain[len(field) + 1 :])
    for field, names in grouped.items():
        prefix = f"{', '.join(names)}: " if any(names) else ""
        advice = _RECREATE if field.endswith("trategy") and _recreates_with_claim(reader) else ""
        notes.append(Note(reader.place, field, Outcome.DROPPED, prefix + reasons[field] + advice))
    return notes


def _recreates_with_claim(reader: FieldReader) -> bool:
    spec = str(reader.peek("spec"))
    return "'type': 'Recreate'" in spec and ("'persistentVolumeClaim'" in spec or "pvc://" in spec)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """Options of the command."""

    out: Annotated[
        str | None,
        Parameter(
            name="--out",
            help="A file for the converted manifests. It stays as it is when one cannot be converted.",
        ),
    ] = None
    json: Annotated[
        bool, Parameter(negative=(), help="Print one JSON object with the manifests and the notes about their fields.")
    ] = False
    accelerator: Annotated[
        str | None, Parameter(help="The AcceleratorClass of all pools. Default: as the manifests suggest.")
    ] = None
    external: Annotated[
        bool,
        Parameter(negative=(), help="Write models that route to the engines that already run."),
    ] = False


_DEFAULTS: Final = ConversionOptions()


@dataclass(slots=True)
class _Converted:
    """The documents of other systems, and what became of them.

    scalers: autoscalers of Kubernetes and KEDA.
    manifests: Fairlead's own objects among the files, then the converted ones.
    """

    foreign: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    scalers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    manifests: list[dict[str, Any]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def convert(
    *files: Files,
    file: MoreFiles = None,
    how: ConversionOptions = _DEFAULTS,
) -> int:
    """Convert manifests of other systems.

    Manifests of KServe, AIBrix, KubeAI, kthena, llm-d, LiteLLM and vLLM's production-stack become
    ModelDeployments, as do other Deployments and LeaderWorkerSets with vLLM or SGLang. Splits by
    weight, rules by header and fallbacks become ModelRoutes, and LoRA adapters become
    ModelAdapters. Standard error names each field that was not carried over, with
    the reason, and what to see to in the pods. Give all files of a model together: autoscalers and
    runtimes are separate objects. Values in a HelmRelease of Flux or an Application of Argo CD are
    read. Fairlead's own objects among the files are checked, and stay as they are.

    Exits 0 when each model is converted, with notes on the fields that are not. Exits 1, and
    writes nothing, when an object or an entry that serves a model is left out. Prefer --out FILE to
    a redirection of the shell, which empties its file in any case. Exits 2 on wrong usage.
    """
    paths = collect_paths(convert, files, file)
    if not paths:
        raise BadInput("no file was given", field="FILES", hint="fairlead convert FILE, or - for standard input")
    texts, found = read_texts(paths, limits=Limits())
    result = _Converted(problems=[str(problem) for problem in found])
    for name, text in texts:
        with _form_problems(name, result):
            _sort_documents(name, text, result, is_named=name in paths)
    _place_scalers(result)
    if result.foreign:
        with _form_problems(", ".join(dict.fromkeys(name for name, _ in result.foreign)), result):
            _migrate(result, MigrationOptions(how.accelerator, how.external))
    elif not result.problems and all(note.outcome is not Outcome.LEFT_OUT for note in result.notes):
        result.problems = [note.describe() for note in result.notes]
        result.problems.append("there is nothing to convert: no object is of another system")
    if left_out := [note.describe() for note in result.notes if note.outcome is Outcome.LEFT_OUT]:
        result.problems += [*(one for one in left_out if one not in result.problems), _LEFT_OUT]
    if result.problems:
        print(*(plain_text(str(one)) for one in result.problems), sep="\n", file=sys.stderr)
        return 1
    _write(result, how)
    return 0


@contextmanager
def _form_problems(place: str, result: _Converted) -> Iterator[None]:
    """Turns the error of a reader into a problem.

    Why: no schema has checked documents of other systems. Any field may be a list, a mapping or a
    number where its reader expects another of them.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        result.problems.append(f"{place}: a field has another form than its kind has ({cause})")


def _sort_documents(file: str, text: str, result: _Converted, *, is_named: bool) -> None:
    """Adds the documents of a file. One that nothing reads is a problem in a file that is named."""
    try:
        documents = [node.to_python() for node in parse_documents(text, file=file, limits=Limits())]
    except ManifestError as error:
        result.problems += map(str, error.problems)
        return
    for document in documents:
        if system_of(document) is not None:
            result.foreign.append((file, document))
        elif isinstance(document, dict) and document.get("apiVersion") == API_VERSION:
            result.manifests.append(document)
            result.problems += [f"{file}: {problem}" for problem in _object_problems(document)]
        elif not (isinstance(document, dict) and document.get("kind")):
            reason = "it is no Kubernetes object, and no file of a system that Fairlead converts"
            reason += _CHART_VALUES if isinstance(document, dict) else ""
            if is_named:
                result.problems.append(f"{file}: {reason} (leave it out)")
            else:
                result.notes.append(Note(file, WHOLE_OBJECT, Outcome.DROPPED, reason))
        elif document["kind"] in workloads.SCALER_KINDS:
            result.scalers.append((file, document))
        elif (found := _chart_values(document)) and system_of(found[1]) is not None:
            result.foreign.append((f"{file}: {found[0]}", found[1]))
        else:
            _note_unread(file, document, result)


def _note_unread(file: str, document: Mapping[str, Any], result: _Converted) -> None:
    """Notes an object that nothing reads. One that serves a model is a problem."""
    kind, name = document["kind"], (document.get("metadata") or {}).get("name", "")
    place = f"{file}: {kind} {name}".rstrip()
    outcome = Outcome.DROPPED
    if reason := unread_engine(document):
        outcome = Outcome.LEFT_OUT
    elif is_unsupported(document):
        reason = _OTHER_OBJECTS.get(kind, "Fairlead does not convert this kind: write it by hand")
        outcome = Outcome.DROPPED if kind in _SERVE_NO_MODEL else Outcome.LEFT_OUT
    elif kind in _FOR_OLD_ENGINES:
        reason = f"{_OLD_ENGINES}; {TO_GATEWAY}" if kind in _HTTP_ROUTES else _OLD_ENGINES
    else:
        is_release = _chart_values(document) is not None
        reason = _GIVE_VALUES if is_release else "it stays as it is: apply it as before"
    result.notes.append(Note(place, WHOLE_OBJECT, outcome, reason))


def _chart_values(document: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Returns name and values of a chart that Flux or Argo CD installs; None for other objects."""
    kind, spec = document["kind"], document.get("spec") or {}
    name = f"{kind} {(document.get('metadata') or {}).get('name', '')}"
    if (kind, _group_of(document)) == ("HelmRelease", "helm.toolkit.fluxcd.io"):
        return name, spec.get("values") or {}
    if (kind, _group_of(document)) != ("Application", "argoproj.io"):
        return None
    for source in filter(None, (spec.get("source"), *(spec.get("sources") or ()))):
        helm = source.get("helm") or {}
        values = helm.get("valuesObject") or yaml.safe_load(helm.get("values") or "")
        if system_of(values) is not None:
            return name, values
    return name, {}


def _group_of(document: Mapping[str, Any]) -> str:
    return str(document.get("apiVersion", "")).partition("/")[0]


def _place_scalers(result: _Converted) -> None:
    """Gives each autoscaler to the workload that it scales; notes its bounds without one."""
    for file, document in result.scalers:
        if _system_of_target(document, result.foreign) is not None:
            result.foreign.append((file, document))
            continue
        scaler = FieldReader.of_document(document, file)
        low, high = workloads.scaler_bounds(document.get("spec") or {}, document["kind"])
        reason = f"its bounds are minReplicas: {low} and maxReplicas: {high}; {_OLD_ENGINES}"
        result.notes.append(Note(scaler.place, WHOLE_OBJECT, Outcome.DROPPED, reason))


def _migrate(result: _Converted, options: MigrationOptions) -> None:
    try:
        _check_accelerator(result, options.accelerator)
        migration = migrate(result.foreign, options)
    except BadInput as error:
        place = f"{error.field}: " if error.field else ""
        result.problems.append(f"{place}{error.message}" + (f" ({error.hint})" if error.hint else ""))
        return
    result.manifests += migration.manifests
    result.notes += migration.notes
    for manifest in migration.manifests:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        result.problems += [f"{kind} {name}: {problem}" for problem in _object_problems(manifest)]
    if not result.problems:
        result.notes += _pod_notes(result.manifests, migration.manifests)
    names = Counter(
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in result.manifests
    )
    for (kind, _, name), count in names.items():
        if count > 1:
            reason = "give all but one another name in their files, or convert each alone and rename it"
            result.problems.append(f"{kind} {name}: {count} objects would have this name ({reason})")


def _pod_notes(manifests: Sequence[dict[str, Any]], converted: Iterable[dict[str, Any]]) -> Iterator[Note]:
    """Yields notes on the rendered pods of models, and on pools that never start."""
    found = [read_object(one) for one in manifests if one.get("kind") == "AcceleratorClass"]
    own = {one.metadata.name: one for one in found if isinstance(one, AcceleratorClass)}
    classes = {**builtin_accelerators(), **own}
    for manifest in converted:
        model = read_object(manifest) if manifest["kind"] == "ModelDeployment" else None
        if isinstance(model, ModelDeployment):
            place = f"ModelDeployment {model.metadata.name}"
            for note in (*lint_pods(model, classes), *lint_stopped_pools(model.spec)):
                yield Note(place, format_path(note.path), Outcome.REQUIRED, f"{note.message} ({note.fix})")


def _check_accelerator(result: _Converted, accelerator: str | None) -> None:
    """Raises BadInput for an AcceleratorClass that `fairlead lint` would refuse in the output."""
    own = [document["metadata"]["name"] for document in result.manifests if document.get("kind") == "AcceleratorClass"]
    known = sorted({*own, *builtin_accelerators(), *builtin_profiles()})
    if accelerator is not None and accelerator not in known:
        raise BadInput(
            f"no AcceleratorClass among the files and no built-in one is called {accelerator}",
            field="--accelerator",
            hint=f"give the file of the AcceleratorClass, too, or name one of {', '.join(known)}",
        )


def _write(result: _Converted, how: ConversionOptions) -> None:
    if how.json:
        notes = [
            {"place": note.place, "field": note.field, "outcome": note.outcome, "reason": note.reason}
            for note in result.notes
        ]
        _print(format_document({"manifests": result.manifests, "notes": notes}, "json"), how)
        return
    ordered = sorted(result.notes, key=lambda note: note.outcome is Outcome.REQUIRED)  # read most surely at the end
    lines = [plain_text(note.describe()) for note in ordered]
    print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
    texts = [
        yaml.safe_dump(manifest, sort_keys=False, width=100, allow_unicode=True).rstrip("\n")
        for manifest in result.manifests
    ]
    _print("\n---\n".join(texts), how)


def _print(text: str, how: ConversionOptions) -> None:
    if how.out is None:
        print(text)
    else:
        write_atomic(Path(how.out), f"{text}\n".encode(), mode=0o644)


def _object_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yields the problems of one of Fairlead's objects."""
    try:
        read_object(manifest)
    except BadInput as error:
        yield error.message
