"""The router seam under tools that report little, or impossible counts."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_sim.adapters.router_adapter import INFERENCE_REQUESTS, INFERENCE_SECONDS
from fairlead_sim.seams import router

NAMES = ("a", "b", "c")
INFO: dict[str, Any] = {"live": NAMES, "ttft_slo": 5.0}


def request(name: object, tokens: Any = 1600, blocks: Any = (1, 2, 3), **more: Any) -> Any:
    return SimpleNamespace(id=name, prompt_tokens=tokens, blocks=blocks, **more)


def endpoints(**fields: Any) -> list[Any]:
    return [SimpleNamespace(id=name, **fields) for name in NAMES]


@pytest.mark.parametrize(
    ("asked", "offered", "now", "field"),
    [
        (request("x", tokens="12"), endpoints(), 0.0, "request.prompt_tokens"),
        (request("x", tokens=None), endpoints(), 0.0, "request.prompt_tokens"),
        (request("x", tokens=-1), endpoints(), 0.0, "request.prompt_tokens"),
        (request("x", tokens=math.nan), endpoints(), 0.0, "request.prompt_tokens"),
        (request(None), endpoints(), 0.0, "request.id"),
        (request("x", blocks="abc"), endpoints(), 0.0, "request.blocks"),
        (request("x", blocks=7), endpoints(), 0.0, "request.blocks"),
        (request("x"), endpoints(inflight="3"), 0.0, "endpoint.inflight"),
        (request("x"), endpoints(matched_tokens=[1]), 0.0, "endpoint.matched_tokens"),
        (request("x"), [SimpleNamespace(up=True)], 0.0, "endpoint.id"),
        (request("x"), None, 0.0, "endpoints"),
        (request("x"), endpoints(), None, "now"),
        (request("x"), endpoints(), math.nan, "now"),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(asked: Any, offered: Any, now: Any, field: str) -> None:
    seam, other = router(INFO), router(INFO)
    with pytest.raises(BadInput) as caught:
        seam.pick(asked, offered, now)
    assert caught.value.field == field
    assert field in str(caught.value)
    later = [request(str(n), blocks=(n,)) for n in range(9)]
    assert [seam.pick(one, endpoints(), 1.0) for one in later] == [other.pick(one, endpoints(), 1.0) for one in later]


@pytest.mark.parametrize("value", [-3, math.nan, math.inf, None])
def test_impossible_counters_are_unknown(value: Any) -> None:
    odd, plain = router(INFO), router(INFO)
    fields = (
        "inflight",
        "waiting",
        "running",
        "pending_prefill_tokens",
        "inflight_tokens",
        "kv_util",
        "matched_tokens",
    )
    said = endpoints(**dict.fromkeys(fields, value))
    asked = [request(str(n), 4000, (n, -n)) for n in range(30)]
    assert [odd.pick(one, said, 0.0) for one in asked] == [plain.pick(one, endpoints(), 0.0) for one in asked]


@pytest.mark.parametrize(
    "field", ["ttft_slo", "prefill_s_per_token", "kv_tokens", "max_seqs", "step_tokens", "block_tokens"]
)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e-300, None])
def test_hints_that_no_engine_has_are_left_out(field: str, value: Any) -> None:
    seam = router({**INFO, field: value})
    assert {seam.pick(request(str(n), blocks=(n,)), endpoints(), 0.0) for n in range(9)} == set(NAMES)


def test_hints_that_are_words_and_names_that_collide_are_refused() -> None:
    with pytest.raises(BadInput, match=r"info\.kv_tokens"):
        router({**INFO, "kv_tokens": "many"})
    with pytest.raises(BadInput, match="live"):
        router({"live": [1, "1"]})


def test_a_count_of_what_is_held_moves_nothing() -> None:
    for preset in ("dual-hash", "dualmap"):
        seam: Any = router(INFO, preset=preset)
        seam.pick(request("x"), endpoints(), 0.0)
        assert seam.rebalance(endpoints(held=3), 9.0) == []


def share(seam: Any, at: float, count: int, told: dict[str, int], *, first: bool = False) -> dict[str, int]:
    """Returns the requests per endpoint, of ``count`` prompts that share nothing."""
    picked = dict.fromkeys(NAMES, 0)
    rest = {"pending_prefill_tokens": 0, "matched_tokens": 0}
    counted = [
        SimpleNamespace(id=each, inflight=told[each], inflight_tokens=8000 * told[each], **rest) for each in NAMES
    ]
    for number in range(count):
        name = f"{at}/{number}"
        chosen = seam.pick(request(name, 8000, tuple(f"{name}/{block}" for block in range(15))), counted, at)
        if first:
            seam.on_first_token(request(name), chosen, at, 0)
        picked[chosen] += 1
    return picked


@pytest.mark.parametrize("first", [False, True])
def test_a_tool_without_completions_is_trusted_with_its_counts(first: bool) -> None:
    seam = router(INFO)
    share(seam, 0.0, INFERENCE_REQUESTS, {"a": 1, "b": 1, "c": 1}, first=first)
    picked = share(seam, INFERENCE_SECONDS, 60, {"a": 45, "b": 1, "c": 45}, first=first)
    assert picked["b"] == 60


def test_a_long_request_does_not_disable_a_tools_completions() -> None:
    seam = router(INFO)
    quick = request("quick", 100, ())
    seam.on_complete(quick, seam.pick(quick, endpoints(), 0.0), 0.0, 1)
    share(seam, 0.0, INFERENCE_REQUESTS, {"a": 0, "b": 0, "c": 0})
    picked = share(seam, INFERENCE_SECONDS, 60, {"a": 45, "b": 1, "c": 45})
    assert max(picked.values()) <= 25


def test_requests_of_an_endpoint_that_left_are_lost_without_a_report() -> None:
    seam = router(INFO, preset="least-request")
    for number in range(30):
        seam.pick(request(str(number), blocks=()), endpoints(), 0.0)
    for number in range(30, 34):  # "a" is gone
        seam.pick(request(str(number), blocks=()), endpoints()[1:], 1.0)
    back = [SimpleNamespace(id="a", inflight=0), SimpleNamespace(id="b"), SimpleNamespace(id="c")]
    assert [seam.pick(request(str(number), blocks=()), back, 2.0) for number in range(34, 44)] == ["a"] * 10


def test_an_endpoint_omitted_from_one_pick_keeps_its_state() -> None:
    seam = router(INFO, preset="least-request")
    for number in range(30):
        seam.pick(request(str(number), blocks=()), endpoints(), 0.0)
    seam.pick(request("30", blocks=()), endpoints()[1:], 1.0)
    picked = [seam.pick(request(str(number), blocks=()), endpoints(), 2.0) for number in range(31, 43)]
    assert picked.count("a") in (4, 5)
