"""Limits hold over all gateways, whatever dies, restarts, or is lost on the way.

The truth is a sequential count of what all slices ever spent. Bounds:

- Strict: a window never uses more than its limit. Without checkpoints, one gateway that knows the
  state of the store survives its loss.
- Estimated: more only by what requests used beyond their estimates, and by one slice for each
  holder that died or could not renew its lease. After a loss of the store's state, it is also
  what no living gateway remembers, and what is granted within one lease from then on.
- With demand, at most one slice stays unused for each holder that died.
"""

from hypothesis import given
from hypothesis import strategies as st

from fairlead.tenants.model import Limit, LimitUnit, Window
from fairlead_testing.gateway.quota_model import ModelFleet

_DEATHS = ["kill worker", "kill gateway", "add gateway", "cut off"]
_LOSSES = ["flush", "restart", "failover", "snapshot"]
_FAULTS = st.sampled_from([_DEATHS, [*_DEATHS * 3, *_LOSSES], [*_DEATHS, *_LOSSES]])
_OFFSETS = st.sampled_from([0, 30_000, 52_000, 58_000])


def _fleet(seed: int, window: Window, offset: int, *, is_strict: bool, is_durable: bool) -> tuple[ModelFleet, int]:
    amount = (30, 60, 200)[seed % 3]
    terms = Limit(LimitUnit.REQUESTS, amount, window)
    return ModelFleet(seed, terms, is_strict=is_strict, is_durable=is_durable, offset_ms=offset), amount


@given(
    st.integers(0, 10**9),
    st.integers(20, 200),
    _FAULTS,
    st.sampled_from([Window.MINUTE, Window.DAY]),
    _OFFSETS,
    st.booleans(),
)
def test_a_strict_limit_is_never_exceeded(
    seed: int, steps: int, faults: list[str], window: Window, offset: int, is_durable: bool
) -> None:
    fleet, amount = _fleet(seed, window, offset, is_strict=True, is_durable=is_durable)
    fleet.play(steps, faults)
    for start, spent in fleet.spent().items():
        assert spent <= amount, start


@given(
    st.integers(0, 10**9),
    st.integers(20, 200),
    _FAULTS,
    st.sampled_from([Window.MINUTE, Window.DAY]),
    _OFFSETS,
    st.booleans(),
)
def test_an_estimated_limit_is_exceeded_by_the_stated_bound_at_most(
    seed: int, steps: int, faults: list[str], window: Window, offset: int, is_durable: bool
) -> None:
    fleet, amount = _fleet(seed, window, offset, is_strict=False, is_durable=is_durable)
    fleet.play(steps, faults)
    slices = (fleet.deaths + fleet.ended_leases) * fleet.largest_slice
    bound = amount + fleet.estimate_excess + slices + fleet.forgotten + fleet.unlimited_grants
    for start, spent in fleet.spent().items():
        assert spent <= bound, start


@given(st.integers(0, 10**9), st.integers(0, 4), st.booleans())
def test_demand_uses_a_limit_up_but_for_a_slice_of_each_dead_holder(seed: int, deaths: int, is_strict: bool) -> None:
    amount = 60
    fleet = ModelFleet(
        seed, Limit(LimitUnit.REQUESTS, amount, Window.DAY), is_strict=is_strict, is_durable=False, offset_ms=0
    )
    for _ in range(deaths):
        for _ in range(fleet.draw.randrange(40)):
            fleet.step(loses_messages=False)
        fleet.kill_worker()
    for _ in range(300):
        fleet.step(loses_messages=False)
    total = sum(fleet.spent().values())
    # Requests of up to 5 wait; less may be left than the next one needs.
    assert total >= amount - fleet.deaths * fleet.largest_slice - 5
