"""The state of the core survives JSON without an effect on later plans."""

import pytest

from fairlead.errors import BadInput
from fairlead_autoscaler.core import GatewayTraffic, ModelSpec, Observation, PoolObservation, PoolSpec, ScalingCore
from fairlead_autoscaler.core.state import decode_state, encode_state


def _observation(tick: int) -> Observation:
    pool = PoolObservation(3, 3, replicas=())
    return Observation(tick * 5.0, GatewayTraffic(5.0 + tick % 3, 4_000.0), {"main": pool})


def test_a_core_with_a_recorded_state_plans_as_the_one_that_went_on() -> None:
    model = ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=1, maximum=9),))
    core = ScalingCore(model)
    for tick in range(100):
        core.step(_observation(tick))
    other = ScalingCore(model, state=decode_state(encode_state(core.state)))
    assert other.state == core.state
    for tick in range(100, 200):
        assert other.step(_observation(tick)) == core.step(_observation(tick))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"clock": 3}', b'{"pools": {"main": {"hedged": "many"}}}'])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        decode_state(data)
