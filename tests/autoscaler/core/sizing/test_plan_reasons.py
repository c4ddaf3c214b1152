"""The reasons of plans explain their numbers."""

from pathlib import Path

import pytest

from fairlead_autoscaler.core.sizing.pool_planner import PoolDemand


def _wanted(needed: float) -> PoolDemand:
    return PoolDemand(3, needed, False, False, False, (120.0, 250.0), 1.0, {}, "KV memory")


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (2.4, "2.40 are needed, limited by KV memory"),
        (2.003, "2.003 are needed, limited by KV memory"),  # and not 2.00, of which two would do
        (2.0000001, "2.00 are needed, limited by KV memory"),
        (0.001, "almost none are needed"),
    ],
)
def test_what_is_needed_explains_the_number(needed: float, said: str) -> None:
    assert _wanted(needed).need_reason == said


@pytest.mark.parametrize("page", ["concepts/autoscaling.md", "how-to/capacity-and-cost.md"])
def test_pages_quote_the_reason_as_it_is(page: str) -> None:
    text = (Path(__file__).resolve().parents[4] / "docs" / page).read_text(encoding="utf-8")
    assert f"planned: 6, by the rule enough: {_wanted(5.24).need_reason}\n" in text
    assert "`limited by KV memory`" in text
