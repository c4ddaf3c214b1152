"""``spec.model``: which weights are served, with what right, and where they are kept."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from fairlead.api.strict_model import Rule, StrictModel, field_error
from fairlead.api.value_types import Size, Subdomain

_SOURCE_PATTERN = r"^((hf|s3|gs|oci|file)://|pvc:).+$"
_REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"


def _check_source(text: str) -> str:
    scheme = text.partition(":")[0]
    if scheme not in ("hf", "s3", "gs", "oci", "pvc", "file"):
        message = f'"{text:.70}" does not say where the model is'
        raise field_error(message, f"begin with hf://, s3://, gs://, oci://, pvc: or file://, such as hf://{text:.40}")
    rest = text[len(scheme) + 1 :]
    if not (rest.strip("/") and (scheme == "pvc" or rest.startswith("//"))):
        raise field_error(f'"{text:.70}" names nothing behind {scheme}:', "write it like hf://Qwen/Qwen3-8B")
    return text


class ModelCredentials(StrictModel):
    """What proves the right to read the weights."""

    secret_name: Annotated[
        Subdomain,
        Field(
            description="a Secret of the same namespace; its entries become environment variables of what downloads, such "
            "as HF_TOKEN, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            examples=["hf-token"],
        ),
    ]


class ModelCache(StrictModel):
    """Where downloaded weights are kept. Left out: in a scratch volume of the pod, downloaded anew by every pod."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.claimName) != has(self.size)",
            message="a cache is either a claim that exists or a volume of some size",
            fix="give exactly one of claimName and size",
            violation=lambda one: (one.claim_name is None) == (one.size is None),
        ),
        Rule(
            cel="!has(self.storageClassName) || has(self.size)",
            message="storageClassName is for a volume that is made, not for a claim that exists",
            fix="give size, or remove storageClassName",
            at=("storageClassName",),
            violation=lambda one: one.storage_class_name is not None and one.size is None,
        ),
    )

    claim_name: Annotated[
        Subdomain | None,
        Field(
            description="a PersistentVolumeClaim of the same namespace that all pods share (ReadWriteMany): the weights are "
            "downloaded once",
            examples=["models"],
        ),
    ] = None
    size: Annotated[
        Size | None, Field(description="a volume of this size for each pod, gone with the pod", examples=["200Gi"])
    ] = None
    storage_class_name: Annotated[
        Subdomain | None,
        Field(
            description="makes that volume of this StorageClass; left out = on the node's own disk", examples=["nvme"]
        ),
    ] = None


class ModelSource(StrictModel):
    """Which weights to serve."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.revision) || self.source.startsWith('hf://')",
            message="revision is for hf:// sources",
            fix="put the version into the source, or remove revision",
            at=("revision",),
            violation=lambda one: one.revision is not None and one.scheme != "hf",
        ),
        Rule(
            cel="!has(self.credentials) || !(self.source.startsWith('pvc:') || self.source.startsWith('file://'))",
            message="weights that are not downloaded need no credentials",
            fix="remove credentials",
            at=("credentials",),
            violation=lambda one: one.credentials is not None and not one.is_downloaded,
        ),
        Rule(
            cel="!has(self.cache) || !(self.source.startsWith('pvc:') || self.source.startsWith('file://'))",
            message="weights that are not downloaded need no cache",
            fix="remove cache",
            at=("cache",),
            violation=lambda one: one.cache is not None and not one.is_downloaded,
        ),
    )

    source: Annotated[
        str,
        AfterValidator(_check_source),
        Field(
            min_length=1,
            max_length=1024,
            description="where the weights are: hf://REPOSITORY, s3://, gs:// or oci:// (downloaded), pvc:CLAIM/PATH "
            "(mounted), file://PATH (in the image). A real engine of local mode loads hf:// and file://; a simulated one "
            "only reports it",
            examples=['"hf://Qwen/Qwen3-8B"'],
            json_schema_extra={"pattern": _SOURCE_PATTERN},
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=256,
            pattern=_REVISION_PATTERN,
            description="commit, tag or branch of an hf:// source; a commit makes every pod serve the same weights",
            examples=["main"],
        ),
    ] = None
    credentials: Annotated[ModelCredentials | None, Field(examples=["{secretName: hf-token}"])] = None
    cache: Annotated[ModelCache | None, Field(examples=["{claimName: models}"])] = None

    @property
    def scheme(self) -> str:
        """``hf``, ``s3``, ``gs``, ``oci``, ``pvc`` or ``file``."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """What stands behind the scheme: ``Qwen/Qwen3-8B``, ``bucket/path``, ``claim/path``, ``/path``."""
        rest = self.source.partition(":")[2]
        return rest.lstrip("/") if self.scheme == "pvc" else rest.removeprefix("//")

    @property
    def is_downloaded(self) -> bool:
        """The weights come over the network, and so may need credentials and a cache."""
        return self.scheme not in ("pvc", "file")
