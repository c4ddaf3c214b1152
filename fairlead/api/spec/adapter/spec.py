"""`spec` of a ModelAdapter: a LoRA adapter, and the model that it belongs to."""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator

from fairlead.adapters.download import DIGEST_PATTERN, DOWNLOAD_PATTERNS, REVISION_PATTERN, AdapterDownload
from fairlead.api.strict_model import Rule, StrictModel, api_field, api_list, field_error
from fairlead.api.value_types import Int32, ServedName, ShortName

_FOLDERS: Final = r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+"
_SOURCE_PATTERN: Final = (
    f"^({'|'.join(DOWNLOAD_PATTERNS.values())}"
    rf"|pvc:[a-z0-9]([-a-z0-9.]*[a-z0-9])?{_FOLDERS}|file://{_FOLDERS})$"
)
_SOURCE: Final = re.compile(_SOURCE_PATTERN.strip("^$"))
_EXAMPLES: Final = {
    "s3": "s3://BUCKET/PATH",
    "gs": "gs://BUCKET/PATH",
    "oci": "oci://REGISTRY/REPOSITORY@sha256:DIGEST",
}


def _check_source(text: str) -> str:
    if not _SOURCE.fullmatch(text):
        message = f'"{text:.70}" is not the source of an adapter'
        wanted = _EXAMPLES.get(text.partition(":")[0], "hf://ORGANIZATION/NAME, pvc:CLAIM/PATH or s3://BUCKET/PATH")
        raise field_error(message, f"write it like {wanted}")
    return text


class ModelAdapterSpec(StrictModel):
    """A LoRA adapter of a model."""

    unique: ClassVar[Mapping[str, str]] = {"served_names": ""}

    planned: ClassVar[frozenset[str]] = frozenset({"credentials"})
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.revision) || self.source.startsWith('hf://')",
            message="revision is for hf:// adapters",
            fix="put the version into the source, or pin the content by digest",
            at=("revision",),
            violation=lambda spec: spec.revision is not None and spec.scheme != "hf",
        ),
        Rule(
            cel="!has(self.digest) || !(self.source.startsWith('pvc:') || self.source.startsWith('file://'))",
            message="only adapters that are downloaded have a digest",
            fix="remove digest, or write a source that begins with hf://, s3://, gs:// or oci://",
            at=("digest",),
            violation=lambda spec: spec.digest is not None and spec.scheme in ("pvc", "file"),
        ),
    )

    base: Annotated[ShortName, api_field("the ModelDeployment that it belongs to, in the same namespace", "qwen3-8b")]
    source: Annotated[
        str,
        AfterValidator(_check_source),
        api_field(
            "location of its weights: hf://ORGANIZATION/NAME, s3://BUCKET/PATH, gs://BUCKET/PATH, "
            "oci://REGISTRY/REPOSITORY[:TAG][@sha256:DIGEST], pvc:CLAIM/PATH (a claim that the base mounts), file:///PATH (in "
            "the engine's image, or on a volume of its pool's template). The base needs adapters.download for s3://, gs://, "
            "oci://, revision and digest",
            '"pvc:adapters/sql-2"',
            min_length=1,
            max_length=1024,
            json_schema_extra={"pattern": _SOURCE_PATTERN},
        ),
    ]
    revision: Annotated[
        str | None,
        api_field(
            "commit of an hf:// repository; left out = its branch main, as the engine finds it",
            "0123456789abcdef0123456789abcdef01234567",
            max_length=40,
            pattern=REVISION_PATTERN,
        ),
    ] = None
    digest: Annotated[
        str | None,
        api_field(
            "SHA-256 of the list of files that a download must have; left out = any. The guide to adapters shows how "
            "to compute it",
            '"sha256:01234…"',
            max_length=71,
            pattern=DIGEST_PATTERN,
        ),
    ] = None
    served_names: list[ServedName] = api_list(
        "more names by which clients reach the adapter; `/` is allowed", "[acme/sql]", max_length=16, is_set=True
    )

    replicas: Annotated[
        Int32 | None,
        api_field(
            "engines of the base that keep it loaded; left out = none, it is loaded when a request names it, and "
            "unloaded for others. An engine with several slots leaves one to adapters without replicas",
            "2",
            ge=1,
            le=4096,
        ),
    ] = None

    @property
    def scheme(self) -> str:
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        return self.source.partition(":")[2].removeprefix("//")

    @property
    def download(self) -> AdapterDownload | None:
        """The download for a downloader; None if the engine finds the weights by itself."""
        if self.scheme in ("s3", "gs", "oci") or self.revision is not None or self.digest is not None:
            return AdapterDownload(self.source, self.revision or "", self.digest or "")
        return None
