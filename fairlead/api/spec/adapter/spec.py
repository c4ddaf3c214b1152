"""`spec` of a ModelAdapter: a LoRA adapter, and the model that it belongs to."""

import re
from typing import Annotated, ClassVar, Final, Self

from pydantic import AfterValidator, Field, model_validator

from fairlead.api.strict_model import StrictModel, field_error
from fairlead.api.value_types import ServedName, ShortName, check_unique

_FOLDERS: Final = r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+"
_SOURCE_PATTERN: Final = (
    r"^(hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
    rf"|pvc:[a-z0-9]([-a-z0-9.]*[a-z0-9])?{_FOLDERS}|file://{_FOLDERS})$"
)
_SOURCE: Final = re.compile(_SOURCE_PATTERN.strip("^$"))
_STORES: Final = ("s3", "gs", "oci")


def _check_source(text: str) -> str:
    scheme = text.partition(":")[0]
    if scheme in _STORES:
        message = f"engines load no adapter from {scheme}://"
        fix = "copy it to a claim in spec.adapters.claimNames of its base, and write pvc:CLAIM/PATH"
        raise field_error(message, fix)
    if not _SOURCE.fullmatch(text):
        message = f'"{text:.70}" is not the source of an adapter'
        raise field_error(message, "write it like hf://ORGANIZATION/NAME, pvc:CLAIM/PATH or file:///PATH")
    return text


class ModelAdapterSpec(StrictModel):
    """A LoRA adapter of a model."""

    planned: ClassVar[frozenset[str]] = frozenset({"revision", "credentials"})

    base: Annotated[
        ShortName,
        Field(description="the ModelDeployment that it belongs to, in the same namespace", examples=["qwen3-8b"]),
    ]
    source: Annotated[
        str,
        AfterValidator(_check_source),
        Field(
            min_length=1,
            max_length=1024,
            description="location of its weights: hf://ORGANIZATION/NAME (downloaded by the engine), pvc:CLAIM/PATH (a "
            "claim that the base mounts), file:///PATH (in the image of the engine)",
            examples=['"pvc:adapters/sql-2"'],
            json_schema_extra={"pattern": _SOURCE_PATTERN},
        ),
    ]
    served_names: list[ServedName] = Field(
        default_factory=list,
        max_length=16,
        description="more names by which clients reach the adapter; `/` is allowed",
        examples=["[acme/sql]"],
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )

    replicas: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="engines of the base that keep it loaded; left out = none, it is loaded when a request names it, and "
            "unloaded for others. An engine with several slots leaves one to adapters without replicas",
            examples=["2"],
            json_schema_extra={"format": "int32"},
        ),
    ] = None

    @model_validator(mode="after")
    def _check_unique_names(self) -> Self:
        check_unique("servedNames", self.served_names)
        return self

    @property
    def scheme(self) -> str:
        """`hf`, `pvc` or `file`."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """The part after the scheme: `acme/sql-lora`, `claim/path`, `/path`."""
        return self.source.partition(":")[2].removeprefix("//")
