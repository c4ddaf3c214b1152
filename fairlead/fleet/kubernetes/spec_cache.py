"""Parses ModelDeployments and AcceleratorClasses of the API server, each once per change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.engine import EngineType
from fairlead.api.strict_model import StrictModel
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.client_names import recorded_names
from fairlead.fleet.labels import RELEASE_NAMES_ANNOTATION
from fairlead.kube.resources import Manifest, annotations_of, metadata_of, name_of

_METADATA_FIELDS: Final = (
    *("name", "namespace", "uid", "resourceVersion", "generation"),
    *("creationTimestamp", "deletionTimestamp"),
)


def trim_model(model: Manifest) -> Manifest:
    """Returns a ModelDeployment without templates of pods, labels, and annotations of others.

    Why: these have any size. Decoded, a template takes up to 25 times its bytes.
    """
    metadata, spec = metadata_of(model), model.get("spec")
    kept: Manifest = {name: metadata[name] for name in _METADATA_FIELDS if name in metadata}
    if RELEASE_NAMES_ANNOTATION in annotations_of(model):
        kept["annotations"] = {RELEASE_NAMES_ANNOTATION: annotations_of(model)[RELEASE_NAMES_ANNOTATION]}
    pools = spec.get("pools") if isinstance(spec, dict) else None
    if isinstance(spec, dict) and isinstance(pools, list):
        spec = {**spec, "pools": [_without_template(pool) for pool in pools]}
    return {**model, "metadata": kept, "spec": spec}


def _without_template(pool: Any) -> Any:
    return {name: value for name, value in pool.items() if name != "template"} if isinstance(pool, dict) else pool


@dataclass(frozen=True, slots=True)
class ParsedModel:
    """A ModelDeployment. If this release cannot read it, `spec` is None and `problem` says why.

    recorded_names: the names that its status says it has; None if the status says nothing yet.
    releases_names: it gives its names to others that claim them.
    canary_weight: percentage of the conversations that its canary gets.
    """

    namespace: str
    name: str
    created: str
    spec: ModelDeploymentSpec | None
    problem: str = ""
    recorded_names: frozenset[str] | None = None
    releases_names: bool = False
    canary_weight: int = 0

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class KnownAccelerator:
    """An accelerator class, with the expected profile of engines on it."""

    profile: EngineProfile
    spec: AcceleratorClassSpec


class SpecCache:
    """A cache of the parsed specs of models and accelerator classes.

    Why: the status and labels of objects change often, their specs seldom.
    """

    def __init__(self) -> None:
        self._models: dict[str, tuple[Any, ParsedModel]] = {}
        self._classes: dict[str, tuple[Any, KnownAccelerator | str]] = {}
        self._builtin = {name: _known_accelerator(name, one.spec) for name, one in builtin_accelerators().items()}

    def models(self, items: Mapping[str, Manifest]) -> tuple[ParsedModel, ...]:
        self._models = {key: self._parse_model(key, one) for key, one in items.items()}
        return tuple(sorted((read for _, read in self._models.values()), key=lambda one: (one.created, one.key)))

    def find(self, key: str, item: Manifest) -> ParsedModel:
        return self._parse_model(key, item)[1]

    def accelerators(self, items: Iterable[Manifest]) -> tuple[dict[str, KnownAccelerator], tuple[str, ...]]:
        """Returns every accelerator by name, and the problems of unreadable classes.

        The cluster's classes take precedence over the built-in ones.
        """
        self._classes = {name_of(one): self._parse_class(name_of(one), one) for one in items}
        found, problems = dict(self._builtin), []
        for name, (_, read) in sorted(self._classes.items()):
            if isinstance(read, str):
                problems.append(read)
            else:
                found[name] = read
        return found, tuple(problems)

    def _parse_model(self, key: str, item: Manifest) -> tuple[Any, ParsedModel]:
        written, known = item.get("spec"), self._models.get(key)
        metadata = metadata_of(item)
        created = str(metadata.get("creationTimestamp") or "")
        status = item.get("status") or {}
        recorded, weight = recorded_names(status), recorded_canary_weight(status)
        releases = annotations_of(item).get(RELEASE_NAMES_ANNOTATION) == "true"
        if known is not None and known[0] == written and known[1].created == created:
            return written, _with_status(known[1], recorded, releases, weight)
        spec, problem = None, ""
        try:
            spec = ModelDeploymentSpec.model_validate(_without_idle_replicas(written or {}))
        except ValidationError as error:
            problem = (
                f"the spec of the model {key} cannot be read: {describe_error(error, ModelDeploymentSpec, written)}"
            )
        namespace = str(metadata.get("namespace") or "default")
        return written, ParsedModel(namespace, name_of(item), created, spec, problem, recorded, releases, weight)

    def _parse_class(self, name: str, item: Manifest) -> tuple[Any, KnownAccelerator | str]:
        written, known = item.get("spec"), self._classes.get(name)
        if known is not None and known[0] == written:
            return known
        try:
            return written, _known_accelerator(name, AcceleratorClassSpec.model_validate(written or {}))
        except ValidationError as error:
            return (
                written,
                f"the AcceleratorClass {name} cannot be read: {describe_error(error, AcceleratorClassSpec, written)}",
            )


def _without_idle_replicas(written: Any) -> Any:
    """Returns a spec without `replicas` if it has several pools, or engines that others run.

    Why: a model that gets a second pool keeps the operator's number for a moment. Readers must not
    lose the model for it.
    """
    if not isinstance(written, dict) or "replicas" not in written:
        return written
    kind, pools = (written.get("engine") or {}).get("type"), written.get("pools") or ()
    if len(pools) == 1 and kind not in (EngineType.EXTERNAL, EngineType.OPENAI):
        return written
    return {name: value for name, value in written.items() if name != "replicas"}


def _known_accelerator(name: str, spec: AcceleratorClassSpec) -> KnownAccelerator:
    return KnownAccelerator(spec.profile.to_engine_profile(name), spec)


def recorded_canary_weight(status: Mapping[str, Any]) -> int:
    """Returns the percentage of the conversations that a model's status gives to its canary."""
    canary = status.get("canary")
    weight = canary.get("weight") if isinstance(canary, dict) else None
    return weight if isinstance(weight, int) and 0 <= weight <= 100 else 0


def _with_status(model: ParsedModel, recorded: frozenset[str] | None, releases: bool, weight: int) -> ParsedModel:
    """Returns `model` itself if nothing changed."""
    if (model.recorded_names, model.releases_names, model.canary_weight) == (recorded, releases, weight):
        return model
    return replace(model, recorded_names=recorded, releases_names=releases, canary_weight=weight)


def describe_error(error: ValidationError, model: type[StrictModel], value: Any) -> str:
    """Returns the first validation error as text."""
    from fairlead.manifests.validation_messages import describe_problems  # most specs are right

    return describe_problems(error, model, value, most=1)
