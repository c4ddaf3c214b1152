"""`spec.slo`: the latency targets of a model."""

import re
from typing import Annotated, ClassVar

from fairlead import units
from fairlead.api.strict_model import Rule, StrictModel, api_field
from fairlead.api.value_types import Duration, Percentage, PositiveDuration
from fairlead.fleet.model import SloTargets

_WHOLE_DAYS = re.compile(r"([1-9]|[12][0-9]|30)d")
_MIN_PERIOD_SECONDS, _MAX_PERIOD_SECONDS = 3_600.0, 30 * 86_400.0
_DEFAULT_PERIOD = "24h"


def _is_period(text: str) -> bool:
    """Whether the duration is a period: whole days, or 1 to 720 hours without days."""
    if "d" in text:
        return _WHOLE_DAYS.fullmatch(text) is not None
    return _MIN_PERIOD_SECONDS <= units.parse_duration(text) <= _MAX_PERIOD_SECONDS


class Slo(StrictModel):
    """The SLO of a model: its latency targets. A request must meet both TTFT and TPOT."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.ttftPerKiloToken) || has(self.ttft)",
            message="ttftPerKiloToken is added to ttft, which is missing",
            fix="add `ttft: 800ms`",
            at=("ttftPerKiloToken",),
            violation=lambda slo: slo.ttft_per_kilo_token is not None and slo.ttft is None,
        ),
        Rule(
            # Durations in CEL have no days.
            cel="!has(self.period) || self.period.matches('^([1-9]|[12][0-9]|30)d$') || "
            "(!self.period.contains('d') && duration(self.period) >= duration('1h') && "
            "duration(self.period) <= duration('720h'))",
            message="period is 1h to 30d, in whole days or without days",
            fix="write it like 24h or 7d",
            at=("period",),
            violation=lambda slo: slo.period is not None and not _is_period(slo.period),
        ),
    )

    target: Annotated[
        Percentage,
        api_field("share of requests that should meet the SLO; the autoscaler sizes pools for at most 99.99%", '"95%"'),
    ] = "95%"
    ttft: Annotated[
        PositiveDuration | None, api_field("time to first token of a short prompt; left out = no such target", "800ms")
    ] = None
    ttft_per_kilo_token: Annotated[
        Duration | None,
        api_field("added to ttft for every 1,000 prompt tokens; left out = 0s, so ttft is for all prompts", "120ms"),
    ] = None
    tpot: Annotated[
        PositiveDuration | None, api_field("mean time per output token of a request; left out = no such target", "40ms")
    ] = None

    period: Annotated[
        PositiveDuration | None,
        api_field(
            "time over which `target` holds, from 1h to 30d: the autoscaler lets more requests miss after "
            "hours in which few missed; left out = 24h",
            "7d",
        ),
    ] = None

    def to_targets(self) -> SloTargets:
        """Returns the latency targets in seconds, as routing uses them."""
        return SloTargets(
            target=units.parse_percentage(self.target),
            ttft_seconds=None if self.ttft is None else units.parse_duration(self.ttft),
            ttft_per_kilo_token_seconds=units.parse_duration(self.ttft_per_kilo_token or "0s"),
            itl_seconds=None if self.tpot is None else units.parse_duration(self.tpot),
            period_seconds=units.parse_duration(self.period or _DEFAULT_PERIOD),
        )
