"""Attackers learn nothing from caches that are not shared."""

import pytest

from fairlead.tenants.model import CacheSharing
from fairlead_bench.fairness.cache_timing import aimed_load, timing_attack


@pytest.mark.parametrize(
    ("sharing", "low", "high"), [(CacheSharing.TENANT, 0.45, 0.55), (CacheSharing.CLUSTER, 0.95, 1.0)]
)
def test_attacker_learns_by_time_what_is_cached_only_where_caches_are_shared(
    sharing: CacheSharing, low: float, high: float
) -> None:
    attack = timing_attack(sharing, seed=3)
    assert low <= attack.by_time <= high
    assert low <= attack.by_cached_tokens <= high


def test_prompts_can_be_aimed_at_one_engine_only_with_the_secret() -> None:
    assert aimed_load(knows_secret=False, seed=3) <= 1.3
    assert aimed_load(knows_secret=True, seed=3) >= 4.0
