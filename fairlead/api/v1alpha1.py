"""``serving.fairlead.io/v1alpha1``: the kinds that this release honours, as they are written in a manifest.

CRDs in ``crds/`` and ``docs/reference/api.md`` are generated from here; run ``make generate`` after a change. A field is added
together with the code that honours it, and until then its name stands in ``planned``.
"""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fairlead.names import DNS_LABEL, DNS_SUBDOMAIN
from fairlead.strict import Objectives, Profile, Routing, Strict, wrong

GROUP = "serving.fairlead.io"
VERSION = "v1alpha1"
API_VERSION: Final = "serving.fairlead.io/v1alpha1"

_LABEL_PATTERN = f"^{DNS_LABEL.pattern}$"
_SUBDOMAIN_PATTERN = f"^{DNS_SUBDOMAIN.pattern}$"


def _label(text: str) -> str:
    if not DNS_LABEL.fullmatch(text):
        raise wrong(f'"{text:.70}" is not a DNS label', "use lower-case letters, digits and -, at most 63")
    return text


def _subdomain(text: str) -> str:
    if len(text) > 253 or not DNS_SUBDOMAIN.fullmatch(text):
        message = f'"{text:.70}" is not a Kubernetes name'
        raise wrong(message, "use lower-case letters, digits, - and ., at most 253, beginning and ending with neither")
    return text


Label = Annotated[
    str, AfterValidator(_label), Field(json_schema_extra={"pattern": _LABEL_PATTERN, "minLength": 1, "maxLength": 63})
]
Subdomain = Annotated[
    str,
    AfterValidator(_subdomain),
    Field(json_schema_extra={"pattern": _SUBDOMAIN_PATTERN, "minLength": 1, "maxLength": 253}),
]


def _unique(items: str, names: list[str]) -> None:
    """Refuse the second of two equal names in the list field ``items``."""
    for index, name in enumerate(names):
        if name in names[:index]:
            message = f'the name "{name}" is already given in {items}[{names.index(name)}]'
            raise wrong(message, "give each a name of its own", at=(items, index))


_SOURCE_PATTERN = r"^((hf|s3|gs|oci|file)://|pvc:).+$"


def _source(text: str) -> str:
    scheme = text.partition(":")[0]
    if scheme not in ("hf", "s3", "gs", "oci", "pvc", "file"):
        message = f'"{text:.70}" does not say where the model is'
        raise wrong(message, f"begin with hf://, s3://, gs://, oci://, pvc: or file://, such as hf://{text:.40}")
    rest = text[len(scheme) + 1 :]
    if not (rest.strip("/") and (scheme == "pvc" or rest.startswith("//"))):
        raise wrong(f'"{text:.70}" names nothing behind {scheme}:', "write it like hf://Qwen/Qwen3-8B")
    return text


class ModelSource(Strict):
    """Which weights to serve."""

    planned: ClassVar[frozenset[str]] = frozenset({"revision", "credentials"})

    source: Annotated[
        str,
        AfterValidator(_source),
        Field(
            min_length=1,
            max_length=1024,
            description="where the weights are: hf://, s3://, gs://, oci://, pvc: or file://. A real engine of local "
            "mode loads hf:// and file://; a simulated one only reports it",
            examples=['"hf://Qwen/Qwen3-8B"'],
            json_schema_extra={"pattern": _SOURCE_PATTERN},
        ),
    ]


class EngineKind(StrEnum):
    """Which program serves the model."""

    VLLM = "vllm"
    SIM = "sim"


def _engine_kind(value: Any) -> Any:
    if value in ("sglang", "custom", "external"):
        raise wrong(f"the engine {value} is planned, but nothing in this release runs it", "use vllm or sim")
    return value


_ENVIRONMENT_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"


class EnvironmentVariable(Strict):
    """One environment variable of the engine's process."""

    planned: ClassVar[frozenset[str]] = frozenset({"valueFrom"})

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            pattern=_ENVIRONMENT_PATTERN,
            description="as the engine reads it",
            examples=["VLLM_LOGGING_LEVEL"],
        ),
    ]
    value: Annotated[str, Field(max_length=4096, description="its text; empty when left out")] = ""


class Engine(Strict):
    """The program that serves the model."""

    planned: ClassVar[frozenset[str]] = frozenset({"image"})

    kind: Annotated[
        EngineKind,
        Field(strict=False),
        BeforeValidator(_engine_kind),
        Field(
            description="vllm, or sim for the simulated engine; local mode simulates vllm too unless told otherwise",
            examples=["vllm"],
        ),
    ] = EngineKind.VLLM
    args: list[Annotated[str, Field(min_length=1, max_length=4096)]] = Field(
        default_factory=list,
        max_length=128,
        description="added to the engine's command line; a simulated vllm takes those that change what it simulates",
        examples=['["--max-model-len=32768"]'],
    )
    env: list[EnvironmentVariable] = Field(
        default_factory=list,
        max_length=128,
        description="environment of the engine's process",
        examples=["[{name: VLLM_LOGGING_LEVEL, value: WARNING}]"],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _unique("env", [variable.name for variable in self.env])
        return self


class PoolRole(StrEnum):
    """What the instances of a pool do for a request."""

    SERVE = "Serve"


def _pool_role(value: Any) -> Any:
    if value in ("Prefill", "Decode"):
        raise wrong(f"the role {value} is planned, but nothing in this release splits prefill from decode", "use Serve")
    return value


class Replicas(Strict):
    """How many instances a pool has."""

    planned: ClassVar[frozenset[str]] = frozenset({"max"})

    min: Annotated[
        int,
        Field(
            ge=0,
            le=4096,
            description="instances that always run",
            examples=["8"],
            json_schema_extra={"format": "int32"},
        ),
    ] = 1


class Pool(Strict):
    """Replicas of one template: one accelerator, one role."""

    planned: ClassVar[frozenset[str]] = frozenset({"parallelism", "template"})

    name: Annotated[Label, Field(description="unique within the model", examples=["main"])] = "main"
    role: Annotated[
        PoolRole,
        Field(strict=False),
        BeforeValidator(_pool_role),
        Field(description="Serve: prefill and decode on the same instance", examples=["Serve"]),
    ] = PoolRole.SERVE
    accelerator: Annotated[
        Subdomain, Field(description="an AcceleratorClass, or a built-in one", examples=["nvidia-l4"])
    ]
    replicas: Annotated[Replicas, Field(examples=["{min: 8}"])] = Replicas()


class ModelDeploymentSpec(Strict):
    """What to serve, on what, and how well."""

    planned: ClassVar[frozenset[str]] = frozenset({"autoscaling", "kvCache", "adapters", "rollout", "price"})

    model: Annotated[ModelSource, Field(examples=['{source: "hf://Qwen/Qwen3-8B"}'])]
    engine: Annotated[Engine, Field(examples=["{kind: vllm}"])] = Engine()
    pools: list[Pool] = Field(
        min_length=1,
        max_length=16,
        description="where the instances run",
        examples=["[{accelerator: nvidia-l4}]"],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    objectives: Annotated[Objectives, Field(examples=["{ttft: 800ms, itl: 40ms}"])] = Objectives()
    routing: Annotated[Routing, Field(examples=["{preset: dual-hash}"])] = Routing()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _unique("pools", [pool.name for pool in self.pools])
        return self


class AcceleratorClassSpec(Strict):
    """What an instance on this accelerator costs in time."""

    planned: ClassVar[frozenset[str]] = frozenset({"resource", "nodeSelector", "tolerations", "costPerHour"})

    profile: Annotated[
        Profile,
        Field(
            description="what routing expects of an engine here before it has measured one, and what a simulated "
            "engine takes",
            examples=["{preset: 910b4}"],
        ),
    ]


class Metadata(Strict):
    """Names of an object. What a cluster adds (uid, resourceVersion, …) may be there and is not read."""

    model_config = ConfigDict(alias_generator=None)

    name: Annotated[Subdomain, Field(examples=["qwen3-8b"])]
    namespace: Annotated[Label | None, Field(examples=["default"])] = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    uid: Any = Field(default=None, exclude=True)
    resourceVersion: Any = Field(default=None, exclude=True)  # noqa: N815  (Kubernetes' spelling, never read)
    generation: Any = Field(default=None, exclude=True)
    creationTimestamp: Any = Field(default=None, exclude=True)  # noqa: N815
    managedFields: Any = Field(default=None, exclude=True)  # noqa: N815
    finalizers: Any = Field(default=None, exclude=True)
    ownerReferences: Any = Field(default=None, exclude=True)  # noqa: N815


class ModelDeployment(Strict):
    """A model that is served: the one object a platform team applies."""

    api_version: Literal["serving.fairlead.io/v1alpha1"]
    kind: Literal["ModelDeployment"]
    metadata: Annotated[Metadata, Field(examples=["{name: qwen3-8b}"])]
    spec: Annotated[ModelDeploymentSpec, Field(examples=["{model: {...}, pools: [...]}"])]
    status: Any = Field(default=None, exclude=True)

    @property
    def key(self) -> str:
        """``namespace/name``, with the namespace ``default`` where none is written."""
        return f"{self.metadata.namespace or 'default'}/{self.metadata.name}"


class AcceleratorClass(Strict):
    """A kind of accelerator that pools may name. Cluster-scoped."""

    api_version: Literal["serving.fairlead.io/v1alpha1"]
    kind: Literal["AcceleratorClass"]
    metadata: Annotated[Metadata, Field(examples=["{name: npu-910b4}"])]
    spec: Annotated[AcceleratorClassSpec, Field(examples=["{profile: {preset: 910b4}}"])]
    status: Any = Field(default=None, exclude=True)

    @field_validator("metadata")
    @classmethod
    def _cluster_scoped(cls, metadata: Metadata) -> Metadata:
        if metadata.namespace is not None:
            message = "an AcceleratorClass belongs to the cluster, not to a namespace"
            raise wrong(message, "remove it", at=("namespace",))
        return metadata
