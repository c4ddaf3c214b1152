"""``spec.adapters``: room for LoRA adapters."""

from typing import Annotated, Literal

from pydantic import Field

from fairlead.api.strict_model import StrictModel


class Adapters(StrictModel):
    """Room for LoRA adapters in every engine; left out, an engine takes none."""

    slots: Annotated[
        int,
        Field(
            ge=1,
            le=512,
            description="adapters that one batch may mix",
            examples=["8"],
            json_schema_extra={"format": "int32"},
        ),
    ] = 4
    max_rank: Annotated[
        Literal[8, 16, 32, 64, 128, 256, 512],
        Field(description="the highest rank of an adapter; memory grows with it", examples=["64"]),
    ] = 16
