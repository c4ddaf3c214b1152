"""Recognizes documents of other systems, and runs their conversions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.errors import BadInput
from fairlead.manifests.yaml_nodes import format_path
from fairlead_cli.migration.draft import MigrationOptions
from fairlead_cli.migration.field_reader import WHOLE_OBJECT, FieldReader, Note, Outcome
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

_OTHER_GROUPS: Final = (
    ".aibrix.ai",
    "production-stack.vllm.ai",
    "llm-d.ai",
    ".serving.volcano.sh",
    "inference.networking.k8s.io",
    "inference.networking.x-k8s.io",
)
_NO_FIELD: Final = "convert does not read this field: see the reference of the API for one that says it"


@dataclass(frozen=True, slots=True)
class System:
    """A format that can be converted.

    kinds: (API group, kind) of its objects.
    key: top-level key of its values file or configuration; empty if it has objects.
    reasons: field of its objects to the reason that it is not carried over.
    converts_engines: False if the output is external models in any case.
    """

    name: str
    convert: Callable[[Sequence[FieldReader], MigrationOptions], list[dict[str, Any]]]
    reasons: Mapping[str, str]
    kinds: frozenset[tuple[str, str]] = frozenset()
    key: str = ""
    converts_engines: bool = True


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
    """Returns True for an object of a known system that no conversion reads."""
    if not isinstance(document, dict) or system_of(document) is not None:
        return False
    group = str(document.get("apiVersion", "")).partition("/")[0]
    return any(group == known for system in SYSTEMS for known, _ in system.kinds) or group.endswith(_OTHER_GROUPS)


def migrate(documents: Iterable[tuple[str, dict[str, Any]]], options: MigrationOptions) -> Migration:
    """Converts documents, given with their files.

    Raises BadInput for a document that cannot be converted.
    """
    readers: dict[str, list[FieldReader]] = {}
    for file, document in documents:
        system = system_of(document)
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


def _has_aibrix_label(document: Mapping[str, Any]) -> bool:
    labels = (document.get("metadata") or {}).get("labels") or {}
    template = ((document.get("spec") or {}).get("template") or {}).get("metadata") or {}
    return aibrix.NAME_LABEL in labels or aibrix.NAME_LABEL in (template.get("labels") or {})


def _is_for_external(note: Note) -> bool:
    """Returns True for a note about the object as a whole; a field of an engine stays as it is."""
    return note.outcome is Outcome.REQUIRED or (note.outcome is Outcome.CHANGED and note.field == WHOLE_OBJECT)


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
        notes.append(Note(reader.place, field, Outcome.DROPPED, prefix + reasons[field]))
    return notes
