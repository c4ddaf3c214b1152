"""KV pulls: a prefix is pulled where the network is faster than the engine, else computed."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Instance, KvPullSource, Model, SloTargets
from fairlead_gateway.routing import ModelRouter, RouteRequest, prefix_chain
from fairlead_gateway.routing.candidates import MAX_TIME_SHARE, pull_prefill_seconds

SLOW = builtin_profile("l4-qwen8b")  # 0.3 ms a token
FAST = builtin_profile("h100-llama8b")  # 0.036 ms
BYTES = 131_072.0


def gigabits(rate: float) -> KvPullSource:
    return KvPullSource("10.0.0.1:5710", BYTES, rate * 1e9 / 8, 0.01)


@pytest.mark.parametrize(
    ("profile", "rate", "pays"),
    [(SLOW, 100, True), (SLOW, 25, True), (FAST, 100, True), (FAST, 25, False), (SLOW, 1, False)],
)
def test_pulling_pays_where_the_network_is_faster_than_the_engine(
    profile: EngineProfile, rate: float, pays: bool
) -> None:
    computed = profile.prefill_time(8_000.0, 0.0)
    seconds = pull_prefill_seconds(profile, 8_000.0, 0.0, 7_900.0, gigabits(rate), computed)
    assert (seconds >= 0.0) == pays
    if pays:
        assert seconds <= MAX_TIME_SHARE * computed


@pytest.mark.property
@given(
    prompt=st.floats(1, 100_000),
    here=st.floats(0, 1),
    there=st.floats(0, 1),
    rate=st.floats(0.01, 1_000),
)
def test_a_pull_is_never_dearer_than_computing_and_never_of_nothing(
    prompt: float, here: float, there: float, rate: float
) -> None:
    computed = SLOW.prefill_time(prompt, here * prompt)
    seconds = pull_prefill_seconds(SLOW, prompt, here * prompt, there * prompt, gigabits(rate), computed)
    assert seconds < computed
    if there <= here:
        assert seconds < 0.0


def make_router(pull: KvPullSource | None, transfer: str | None = None) -> ModelRouter:
    router = ModelRouter(secret=b"secret")
    router.update(
        Model("default", "m", SloTargets(ttft_seconds=5.0)),
        tuple(
            Instance(
                f"e-{n}", "default", "m", "main", f"http://127.0.0.1:{n}", profile=SLOW, pull=pull, transfer=transfer
            )
            for n in range(2)
        ),
    )
    return router


def prompt(name: str, seed: int = 1) -> RouteRequest:
    text = Random(seed).randbytes(16_000)
    return RouteRequest(name, prefix_chain(text, secret=b"secret", seed=b"m"), len(text) / 4)


def second(router: ModelRouter) -> tuple[str, str, RouteRequest]:
    """One holds the prompt and is busy: where it went, where the next one goes, and that one."""
    first = prompt("first")
    holder = router.choose_instance(first, 0.0).chosen
    assert holder is not None
    router.on_dispatch(first, holder, 0.0)
    router.on_first_token(first.id, 0.0)
    for number in range(4):  # with eight the first would not be there any more
        router.on_dispatch(prompt(f"other-{number}", 100 + number), holder, 0.0)
    again = prompt("again")
    at = router.choose_instance(again, 0.0).chosen
    assert at is not None
    return holder, at, again


def test_an_idle_instance_pulls_from_a_busy_one() -> None:
    router = make_router(gigabits(100))
    holder, at, again = second(router)
    decision = router.choose_instance(again, 0.0)
    assert at != holder
    assert (decision.chosen, decision.source) == (at, holder)
    assert f"tokens from {holder}" in decision.reason
    assert decision.inputs[f"{at}/pull_tokens"].value == pytest.approx(4_000, rel=0.1)
    assert decision.matched_tokens == pytest.approx(4_000, rel=0.1)
    assert decision.with_text(rule="retry-1").source == holder
    before = router.loads()[at].backlog_seconds
    router.on_dispatch(again, at, 0.0)
    assert router.loads()[at].backlog_seconds - before < 0.5 * SLOW.prefill_time(4_000.0, 0.0)


@pytest.mark.parametrize("why", ["slow network", "no tier", "prefill and decode", "retry"])
def test_nothing_is_pulled(why: str) -> None:
    pull = None if why == "no tier" else gigabits(1 if why == "slow network" else 100)
    router = make_router(pull, "nixl" if why == "prefill and decode" else None)
    holder, _, again = second(router)
    decision = router.choose_instance(again, 0.0, excluded=frozenset({holder}) if why == "retry" else frozenset())
    assert decision.source is None
    assert not any("/pull_tokens" in name for name in decision.inputs)
