"""`spec.model`: the weights to serve, the credentials to read them, and their cache."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, Field

from fairlead.api.strict_model import Rule, StrictModel, api_field, api_list, field_error
from fairlead.api.value_types import ContextLength, ServedName, Size, Subdomain
from fairlead.names import SERVED_NAME_PATTERN

_URI_PATTERN = r"^((hf|s3|gs|oci|file|openai)://|pvc:).+$"
API_SCHEME: Final = "openai"
"""The scheme of a model at an OpenAI-compatible API, which has no weights here."""
_REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"


def _check_uri(text: str) -> str:
    scheme = text.partition(":")[0]
    if scheme not in ("hf", "s3", "gs", "oci", "pvc", "file", "openai"):
        message = f'"{text:.70}" is not a model source'
        fix = "begin with hf://, s3://, gs://, oci://, pvc:, file:// or openai://, such as hf://Qwen/Qwen3-8B"
        raise field_error(message, fix)
    prefix = "pvc:" if scheme == "pvc" else f"{scheme}://"
    if not (text.startswith(prefix) and text.removeprefix(prefix).strip("/")):
        raise field_error(
            f'"{text:.70}" is not {prefix} followed by a location',
            "write it like hf://Qwen/Qwen3-8B, s3://BUCKET/PATH, file:///PATH or pvc:CLAIM/PATH",
        )
    if scheme == API_SCHEME and not SERVED_NAME_PATTERN.fullmatch(text.removeprefix(prefix)):
        message = f'"{text:.70}" does not end with the name of a model'
        raise field_error(message, "write the name that the API gives the model, like openai://gpt-4o-mini")
    return text


class SecretReference(StrictModel):
    """A Secret of the same namespace."""

    name: Annotated[Subdomain, api_field("name of the Secret", "hf-token")]


class ModelCredentials(StrictModel):
    """Credentials for reading the weights."""

    secret_ref: Annotated[
        SecretReference,
        api_field(
            "a Secret in the same namespace; its entries become environment variables of the download, such "
            "as HF_TOKEN, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "{name: hf-token}",
        ),
    ]


class ModelCache(StrictModel):
    """Storage for downloaded weights. Without it, each pod downloads them into a scratch volume."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.claimName) != has(self.size)",
            message="a cache is either an existing claim or a volume of some size",
            fix="give exactly one of claimName and size",
            violation=lambda cache: (cache.claim_name is None) == (cache.size is None),
        ),
        Rule(
            cel="!has(self.storageClassName) || has(self.size)",
            message="storageClassName is for a new volume, not for an existing claim",
            fix="give size, or remove storageClassName",
            at=("storageClassName",),
            violation=lambda cache: cache.storage_class_name is not None and cache.size is None,
        ),
    )

    claim_name: Annotated[
        Subdomain | None,
        api_field(
            "a PersistentVolumeClaim in the same namespace, shared by all pods (ReadWriteMany); the weights are "
            "downloaded once; left out = a volume for each pod, of `size`",
            "models",
        ),
    ] = None
    size: Annotated[
        Size | None,
        api_field("a volume of this size for each pod, deleted with the pod; left out = the claim", "200Gi"),
    ] = None
    storage_class_name: Annotated[
        Subdomain | None, api_field("StorageClass of that volume; left out = the node's own disk", "nvme")
    ] = None


def _download_rule(field: str) -> Rule:
    """Returns the rule that a field is for weights that are downloaded."""
    return Rule(
        cel=f"!has(self.{field}) || !(self.uri.startsWith('pvc:') || self.uri.startsWith('file://') || "
        "self.uri.startsWith('openai://'))",
        message=f"weights that are not downloaded need no {field}",
        fix=f"remove {field}",
        at=(field,),
        violation=lambda source: getattr(source, field) is not None and not source.is_downloaded,
    )


class ModelSource(StrictModel):
    """The weights to serve, and their served names."""

    unique: ClassVar[Mapping[str, str]] = {"served_names": ""}
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.revision) || self.uri.startsWith('hf://')",
            message="revision is for hf:// models",
            fix="put the version into the uri, or remove revision",
            at=("revision",),
            violation=lambda source: source.revision is not None and source.scheme != "hf",
        ),
        _download_rule("credentials"),
        _download_rule("cache"),
    )

    uri: Annotated[
        str,
        AfterValidator(_check_uri),
        api_field(
            "location of the weights: hf://REPOSITORY, s3://, gs:// or oci:// (downloaded), pvc:CLAIM/PATH "
            "(mounted), file://PATH (in the engine's image, or on a volume of the pool's template); openai://NAME for engines of "
            "type OpenAI. Real engines in local mode load hf:// and file://; simulated ones only report it",
            '"hf://Qwen/Qwen3-8B"',
            min_length=1,
            max_length=1024,
            json_schema_extra={"pattern": _URI_PATTERN},
        ),
    ]
    revision: Annotated[
        str | None,
        api_field(
            "commit, tag or branch of an hf:// model; a commit makes every pod serve the same weights; "
            "left out = the branch main",
            "main",
            min_length=1,
            max_length=256,
            pattern=_REVISION_PATTERN,
        ),
    ] = None
    credentials: Annotated[ModelCredentials | None, Field(examples=["{secretRef: {name: hf-token}}"])] = None
    cache: Annotated[ModelCache | None, Field(examples=["{claimName: models}"])] = None
    served_names: list[ServedName] = api_list(
        "further names under which clients reach the model; / is allowed. The engine calls the model by the "
        "first of them, or by the name in an openai:// uri; left out = by the ModelDeployment's name. If an external "
        "engine has several names, put the one that its answers carry first",
        "[Qwen/Qwen3-8B]",
        max_length=16,
        is_set=True,
    )
    context_length: ContextLength = None

    @property
    def engine_name(self) -> str | None:
        """The name of the model in the engine. None: the ModelDeployment's name."""
        if self.scheme == API_SCHEME:
            return self.location
        return self.served_names[0] if self.served_names else None

    @property
    def scheme(self) -> str:
        return self.uri.partition(":")[0]

    @property
    def location(self) -> str:
        rest = self.uri.partition(":")[2]
        return rest.lstrip("/") if self.scheme == "pvc" else rest.removeprefix("//")

    @property
    def is_downloaded(self) -> bool:
        """True if the weights come over the network, and may need credentials and a cache."""
        return self.scheme not in ("pvc", "file", API_SCHEME)
