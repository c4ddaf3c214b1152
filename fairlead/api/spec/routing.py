"""Routing."""

from typing import Annotated

from pydantic import (
    Field,
)

from fairlead.api.strict_model import StrictModel
from fairlead.fleet.model import RoutingPreset


class Routing(StrictModel):
    """How requests find an instance."""

    preset: Annotated[
        RoutingPreset,
        Field(
            strict=False,
            description="dual-hash follows cached prefixes while the objective holds; round-robin and least-request "
            "ignore them; session keeps a conversation on one instance; the others are rules that other routers publish",
            examples=["dual-hash"],
        ),
    ] = RoutingPreset.DUAL_HASH
