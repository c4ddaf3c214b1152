"""`spec.slo`: the latency targets of a model."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import (
    Field,
)

from fairlead import units
from fairlead.api.strict_model import Rule, StrictModel
from fairlead.api.value_types import Duration, Percentage, PositiveDuration
from fairlead.fleet.model import SloTargets


class Slo(StrictModel):
    """The SLO of a model: its latency targets. A request must meet both TTFT and TPOT."""

    renamed: ClassVar[Mapping[str, str]] = {"itl": "tpot"}
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.ttftPerKiloToken) || has(self.ttft)",
            message="ttftPerKiloToken is added to ttft, which is missing",
            fix="add `ttft: 800ms`",
            at=("ttftPerKiloToken",),
            violation=lambda slo: slo.ttft_per_kilo_token is not None and slo.ttft is None,
        ),
    )

    target: Annotated[
        Percentage,
        Field(description="share of requests that should meet the SLO", examples=['"95%"']),
    ] = "95%"
    ttft: Annotated[
        PositiveDuration | None,
        Field(description="time to first token of a short prompt; left out = no such target", examples=["800ms"]),
    ] = None
    ttft_per_kilo_token: Annotated[
        Duration | None, Field(description="added to ttft for every 1,000 prompt tokens", examples=["120ms"])
    ] = None
    tpot: Annotated[
        PositiveDuration | None,
        Field(description="mean time per output token of a request; left out = no such target", examples=["40ms"]),
    ] = None

    def to_targets(self) -> SloTargets:
        """Returns the latency targets in seconds, as routing uses them."""
        return SloTargets(
            target=units.parse_percentage(self.target),
            ttft_seconds=None if self.ttft is None else units.parse_duration(self.ttft),
            ttft_per_kilo_token_seconds=units.parse_duration(self.ttft_per_kilo_token or "0s"),
            itl_seconds=None if self.tpot is None else units.parse_duration(self.tpot),
        )
