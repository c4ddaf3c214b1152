"""The reasons of plans explain their numbers."""

import pytest

from fairlead_autoscaler.core.sizing.pool_planner import PoolDemand


def _wanted(needed: float) -> PoolDemand:
    return PoolDemand(3, needed, False, False, False, False, (120.0, 250.0), 1.0, {}, "KV memory")


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
