"""The SLO in seconds, as routing and the autoscaler use it."""

import pytest

from fairlead.api.spec.slo import Slo


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 86_400.0), ("1h", 3_600.0), ("7d", 604_800.0), ("30d", 2_592_000.0)]
)
def test_a_period_is_a_day_unless_it_is_given(text: str | None, seconds: float) -> None:
    assert Slo(target="99%", period=text).to_targets().period_seconds == seconds
