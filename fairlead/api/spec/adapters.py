"""`spec.adapters`: slots for LoRA adapters."""

from typing import Annotated, Literal

from pydantic import Field

from fairlead.api.strict_model import StrictModel


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
