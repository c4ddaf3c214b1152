"""Session affinity: the last instance is a candidate on every replica, for a limited time."""

from random import Random

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Instance, Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.openai.request import session_hash
from fairlead_gateway.routing import ModelRouter, RouteRequest, prefix_chain
from fairlead_gateway.routing.router import SESSION_PIN_SECONDS, SessionAffinity
from fairlead_testing.engines.scripted import well_behaved
from fairlead_testing.gateway.running_gateway import gateway_before
from fairlead_testing.http.raw_client import post_request, send

pytestmark = pytest.mark.simulated

MODEL = Model("default", "m", SloTargets(ttft_seconds=5.0))


def instances(*numbers: int) -> tuple[Instance, ...]:
    profile = builtin_profile("910b4")
    return tuple(
        Instance(f"pod-{n}", "default", "m", "main", f"http://127.0.0.1:{n}", profile=profile) for n in numbers
    )


def make_router(count: int = 8) -> ModelRouter:
    router = ModelRouter(secret=b"secret")
    router.update(MODEL, instances(*range(count)))
    return router


def turn(session: int, number: int, *, named: bool = True) -> RouteRequest:
    """The same conversation, written in other bytes every time."""
    text = Random(session * 1_000 + number).randbytes(8_192)
    chain = prefix_chain(text, secret=b"secret", seed=b"m")
    pin = session_hash(f"s-{session}", MODEL.key, b"secret") if named else None
    return RouteRequest(f"{session}-{number}", chain, len(text) / 4, session_hash=pin)


def served(router: ModelRouter, request: RouteRequest, now: float) -> str:
    at = router.choose_instance(request, now).chosen
    assert at is not None
    router.on_dispatch(request, at, now)
    router.on_first_token(request.id, now)
    router.on_finish(request.id, now)
    return at


def stays(*, named: bool) -> float:
    """Returns the share of turns that meet the last turn's cache, if two replicas take turns."""
    replicas = [make_router(), make_router()]
    same = 0
    for session in range(40):
        last = None
        for number in range(5):
            request, now = turn(session, number, named=named), number * 5.0
            at = served(replicas[number % 2], request, now)
            replicas[(number + 1) % 2].on_peer_dispatch(at, request.chain, now, request.session_hash)
            same += at == last
            last = at
    return same / (40 * 4)


def test_a_session_whose_bytes_change_stays_where_it_is_across_replicas() -> None:
    assert stays(named=True) == 1.0
    assert stays(named=False) < 0.4  # two homes of eight, drawn for each turn


def test_the_decision_names_the_instance_that_served_the_session() -> None:
    router = make_router()
    at = served(router, turn(1, 0), 0.0)
    decision = router.choose_instance(turn(1, 1), 5.0)
    assert (decision.chosen, decision.rule) == (at, "affinity")
    assert decision.inputs[f"{at}/session_last"].value == 1.0
    assert sum(name.endswith("/session_last") for name in decision.inputs) == 1


def test_a_busy_one_is_left_like_any_other() -> None:
    router = make_router()
    at = served(router, turn(1, 0), 0.0)
    for number in range(30):
        router.on_dispatch(turn(100 + number, 0), at, 1.0)
    decision = router.choose_instance(turn(1, 1), 5.0)
    assert decision.chosen != at
    assert any(item.id == at for item in decision.rejected)


@pytest.mark.parametrize("left", ["time", "gone", "failed"])
def test_it_is_no_candidate_any_more(left: str) -> None:
    router = make_router()
    at = served(router, turn(1, 0), 0.0)
    now, excluded = 5.0, frozenset[str]()
    if left == "time":
        now = SESSION_PIN_SECONDS
    elif left == "gone":
        router.update(MODEL, tuple(instance for instance in instances(*range(8)) if instance.id != at))
        router.update(MODEL, instances(*range(8)))  # it is back under its name, with nothing in its cache
    else:
        excluded = frozenset({at})
    decision = router.choose_instance(turn(1, 1), now, excluded=excluded)
    assert decision.chosen is not None
    assert not any(name.endswith("/session_last") for name in decision.inputs)


def test_the_oldest_sessions_go_beyond_the_limit() -> None:
    pins = SessionAffinity(Limits(session_pins=3))
    for pin in (1, 2, 3, 1, 4):
        pins.put(pin, f"pod-{pin}", 0.0)
    assert [pins.get(pin, 1.0) for pin in (1, 2, 3, 4)] == ["pod-1", None, "pod-3", "pod-4"]
    assert len(pins) == 3


def test_a_pin_says_nothing_without_the_secret_and_is_of_one_model() -> None:
    pins = {session_hash("s", key, secret) for key in ("a/m", "b/m") for secret in (b"one", b"two")}
    assert len(pins) == 4


@pytest.mark.parametrize(
    ("more", "header", "pinned"),
    [
        ({}, "", False),
        ({"session_id": "s"}, "", True),
        ({}, "x-session-id: s\r\n", True),
        ({"user": "everybody"}, "", False),
        ({"user": "everybody", "session_id": "s"}, "", True),
    ],
)
async def test_a_named_session_is_pinned_and_a_user_is_not(more: dict[str, str], header: str, pinned: bool) -> None:
    async with gateway_before([well_behaved]) as running:
        for text in ("one", "two"):
            body = {"model": "tiny", "messages": [{"role": "user", "content": text * 100}], **more}
            (answer,) = await send(running.url, post_request(body, more=header))
            assert answer.status == 200
        entry = running.gateway.decisions.find(answer.fields["x-fairlead-decision"])[0]
        inputs = entry.records[0].decision.inputs
        assert any(name.endswith("/session_last") for name in inputs) == pinned


def conversation(turns: int) -> RouteRequest:
    """The same conversation, which grows by 3 KiB with each turn."""
    text = b"".join([Random(turn).randbytes(3_072) for turn in range(turns)])
    chain = prefix_chain(text, secret=b"secret", seed=b"m")
    return RouteRequest(f"turn-{turns}", chain, len(text) / 4, session_hash=session_hash("s", MODEL.key, b"secret"))


def test_cached_tokens_are_those_that_the_engine_counted_of_the_last_turn() -> None:
    router, request = make_router(1), conversation(3)
    router.on_dispatch(request, "pod-0", 0.0)
    router.on_finish(request.id, 1.0, prompt_tokens=2_400, cached_tokens=0, output_tokens=50)
    after = conversation(4)
    decision = router.choose_instance(after, 2.0)
    assert decision.matched_tokens is not None
    assert decision.matched_tokens != 2_400
    assert router.predict_cached_tokens(after, "pod-0", decision.matched_tokens) == 2_400
    assert router.predict_cached_tokens(after, "pod-0", 100.0) == 100.0, "blocks of it were evicted since"
    unnamed = RouteRequest("unnamed", after.chain, after.prompt_tokens)
    assert router.predict_cached_tokens(unnamed, "pod-0", 900.0) == 900.0
