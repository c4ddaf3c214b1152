"""`spec.adapters`: slots for LoRA adapters, and the claims that hold their weights."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fairlead.api.strict_model import StrictModel
from fairlead.api.value_types import Subdomain, check_unique


class Adapters(StrictModel):
    """Slots for LoRA adapters in every engine. If left out, engines load no adapters."""

    slots: Annotated[
        int,
        Field(
            ge=1,
            le=512,
            description="maximum number of adapters in one batch",
            examples=["8"],
            json_schema_extra={"format": "int32"},
        ),
    ] = 4
    max_rank: Annotated[
        Literal[8, 16, 32, 64, 128, 256, 512],
        Field(description="maximum rank of an adapter; memory grows with it", examples=["64"]),
    ] = 16
    claim_names: list[Subdomain] = Field(
        default_factory=list,
        max_length=16,
        description="PersistentVolumeClaims in the same namespace that hold adapters; every engine mounts them, only to read "
        "(ReadOnlyMany or ReadWriteMany). A ModelAdapter names one in its source",
        examples=["[adapters]"],
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )

    @model_validator(mode="after")
    def _check_unique_claims(self) -> Self:
        check_unique("claimNames", self.claim_names)
        return self
