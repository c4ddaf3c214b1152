"""The gateway's router for outside simulators: its view of endpoints, and edge cases."""

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_sim.adapters.router_adapter import (
    INFERENCE_REQUESTS,
    INFERENCE_SECONDS,
    EndpointView,
    LateBindingRouterAdapter,
)
from fairlead_sim.seams import main, router

INFO: dict[str, Any] = {
    "n": 4,
    "live": ["e0", "e1", "e2", "e3"],
    "block_tokens": 512,
    "ttft_slo": 5.0,
    "prefill_s_per_token": 1.45e-4,
    "kv_tokens": 1_200_000,
    "max_seqs": 256,
    "step_tokens": 20_480,
}


def request(name: object, blocks: tuple[Any, ...] = (1, 2), **more: Any) -> Any:
    return SimpleNamespace(id=name, arrival=0.0, prompt_tokens=512 * len(blocks), blocks=blocks, **more)


def endpoints(*names: object, up: bool = True) -> list[Any]:
    return [SimpleNamespace(id=name, up=up, inflight=0, waiting=0, running=0, matched_tokens=0) for name in names]


ALL = endpoints("e0", "e1", "e2", "e3")


def test_a_prefix_goes_where_it_was_before() -> None:
    seam = router(INFO)
    first = seam.pick(request("a"), ALL, 0.0)
    seam.on_first_token(request("a"), first, 1.0, 0)
    seam.on_complete(request("a"), first, 2.0, 50)
    assert seam.pick(request("b", (1, 2, 3, 4, 5)), ALL, 3.0) == first


def test_load_is_what_was_picked_and_not_completed() -> None:
    seam = router(INFO, preset="least-request")
    picked = [seam.pick(request(str(number), (number,)), ALL, 0.0) for number in range(4)]
    assert sorted(picked) == ["e0", "e1", "e2", "e3"]
    seam.on_complete(request("2", (2,)), picked[2], 1.0, 5)
    assert seam.pick(request("4", (4,)), ALL, 1.0) == picked[2]


def test_a_lost_request_is_picked_again_and_counts_once() -> None:
    seam = router(INFO, preset="least-request")
    lost = seam.pick(request("a"), ALL, 0.0)
    rest = [item for item in ALL if item.id != lost]
    seam.on_endpoints([item.id for item in rest], 1.0)
    again = seam.pick(request("a"), rest, 1.0)
    assert again != lost
    others = {seam.pick(request(name, (9,)), rest, 1.0) for name in ("b", "c")}
    assert others == {"e0", "e1", "e2", "e3"} - {lost, again}


def test_an_endpoint_that_comes_back_starts_empty() -> None:
    seam = router(INFO, preset="least-request")
    lost = seam.pick(request("a"), ALL, 0.0)
    seam.on_endpoints([item.id for item in ALL if item.id != lost], 1.0)
    seam.on_endpoints([item.id for item in ALL], 2.0)
    picked = {seam.pick(request(str(number), (number,)), ALL, 2.0) for number in range(4)}
    assert lost in picked
    assert len(picked) == 4


def test_late_feedback_of_a_lost_request_does_no_harm() -> None:
    seam = router(INFO)
    lost = seam.pick(request("a"), ALL, 0.0)
    rest = [item for item in ALL if item.id != lost]
    seam.on_endpoints([item.id for item in rest], 1.0)
    again = seam.pick(request("a"), rest, 1.0)
    seam.on_first_token(request("a"), lost, 1.5, 0)
    seam.on_complete(request("a"), lost, 1.5, 3)
    seam.on_first_token(request("a"), again, 2.0, 0)
    seam.on_complete(request("a"), again, 2.5, 3)
    assert seam.pick(request("b"), rest, 3.0) == again


def test_only_endpoints_offered_and_up_are_picked() -> None:
    seam = router(INFO)
    assert {seam.pick(request(str(n), (n,)), endpoints("e2"), 0.0) for n in range(5)} == {"e2"}
    mixed = [*endpoints("e0", "e1", "e2", up=False), *endpoints("e3")]
    assert seam.pick(request("x"), mixed, 0.0) == "e3"
    assert seam.pick(request("y"), [], 0.0) is None


def test_an_endpoint_that_was_never_announced_is_used() -> None:
    seam = router({**INFO, "live": []})
    assert seam.pick(request("a"), endpoints("new"), 0.0) == "new"


def test_ids_come_back_as_the_tool_wrote_them() -> None:
    seam = router({**INFO, "live": [0, 1]})
    picked = seam.pick(request(7), endpoints(0, 1), 0.0)
    assert picked in (0, 1)
    assert isinstance(picked, int)
    seam.on_complete(request(7), picked, 1.0, 5)


def test_info_may_be_an_object_and_hints_may_be_missing() -> None:
    assert router(SimpleNamespace(live=["a"])).pick(request("x", ("q", "r")), endpoints("a"), 0.0) == "a"


def test_two_fresh_cores_agree_and_know_nothing_of_each_other() -> None:
    core, two = router(INFO), router(INFO)
    names = [f"r{number}" for number in range(50)]
    first = [core.pick(request(name, (index, index + 1)), ALL, 0.0) for index, name in enumerate(names)]
    second = [two.pick(request(name, (index, index + 1)), ALL, 0.0) for index, name in enumerate(names)]
    assert first == second
    assert len(set(first)) == 4


def test_sessions_stay_together_under_the_session_preset() -> None:
    seam = router(INFO, preset="session")
    picked = {seam.pick(request(str(n), (n,), session="chat"), ALL, 0.0) for n in range(10)}
    assert len(picked) == 1


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(BadInput):
        router(INFO, preset="best")


def test_members_of_the_protocol_that_the_core_lacks_are_absent() -> None:
    seam = router(INFO, preset="min-ttft")
    assert not hasattr(seam, "order_key")
    assert not hasattr(seam, "rebalance")


def lines(*operations: object) -> tuple[int, list[Any], str]:
    text = "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in operations)
    sink, errors = io.StringIO(), io.StringIO()
    code = main(["router"], io.StringIO(text), sink, errors)
    return code, [json.loads(line) for line in sink.getvalue().splitlines()], errors.getvalue()


def pick(name: str, blocks: list[int], now: float = 0.0) -> dict[str, Any]:
    asked = {"id": name, "arrival": now, "prompt_tokens": 512 * len(blocks), "blocks": blocks}
    return {"op": "pick", "now": now, "request": asked, "endpoints": [{"id": item.id, "up": True} for item in ALL]}


def test_lines_answer_reset_and_pick_once_each_and_nothing_else() -> None:
    code, answers, errors = lines(
        {"op": "reset", **INFO},
        pick("a", [1, 2]),
        {"op": "first_token", "now": 1.0, "id": "a", "endpoint": "e0", "cached_tokens": 0},
        "",
        {"op": "complete", "now": 2.0, "id": "a", "endpoint": "e0", "output_tokens": 9},
        {"op": "endpoints", "now": 3.0, "live": ["e0", "e1", "e2", "e3"]},
        pick("b", [1, 2, 3], 4.0),
    )
    assert (code, errors, answers[0], len(answers)) == (0, "", {}, 3)
    assert answers[1] == answers[2]


def test_lines_choose_as_the_python_form_does() -> None:
    seam = router(INFO)
    asked = [(f"r{number}", [number % 7, number]) for number in range(30)]
    expected = [seam.pick(request(name, tuple(blocks)), ALL, 0.0) for name, blocks in asked]
    _, answers, _ = lines({"op": "reset", **INFO}, *(pick(name, blocks) for name, blocks in asked))
    assert [answer["endpoint"] for answer in answers[1:]] == expected


def test_reset_starts_afresh() -> None:
    pick_line = pick("a", [1, 2, 3])
    _, answers, _ = lines({"op": "reset", **INFO}, pick_line, {"op": "reset", **INFO}, pick_line)
    assert answers[1] == answers[3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "a JSON object"),
        ({"op": "dance", "now": 0}, "dance: no operation"),
        ({"op": "pick", "now": 0}, "pick: request is missing"),
        ({"op": "pick", "now": 0, "request": 5, "endpoints": []}, "pick: request.id is missing"),
        ({"op": "pick", "now": "soon", "request": {"id": 1, "prompt_tokens": 5}, "endpoints": []}, "pick: now: str"),
        ({"op": "pick", "now": 0, "request": {"id": 1, "prompt_tokens": -5}, "endpoints": []}, "request.prompt_tokens"),
        (
            {"op": "pick", "now": 0, "request": {"id": 1, "prompt_tokens": 5}, "endpoints": [{"up": True}]},
            "endpoint.id",
        ),
        ({"op": "reset", "live": "e0"}, "reset: info.live: str where a list belongs"),
    ],
)
def test_a_wrong_line_is_named_answered_and_skipped(line: object, message: str) -> None:
    code, answers, errors = lines({"op": "reset", **INFO}, line, pick("a", [1]))
    assert (code, len(answers)) == (2, 3)
    assert message in answers[1]["error"]
    assert errors.startswith("line 2: ")
    assert answers[2] == lines({"op": "reset", **INFO}, pick("a", [1]))[1][1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"op": "endpoints", "live": []}, "endpoints: now is missing"),
        ({"op": "endpoints", "live": 3, "now": 0}, "endpoints: live: int where a list belongs"),
        ({"op": "first_token", "now": 0, "id": "a"}, "first_token: endpoint is missing"),
        ({"op": "first_token", "now": 0, "endpoint": "e0"}, "request.id is missing"),
        ({"op": "complete", "now": 0, "id": "a", "endpoint": "e0", "output_tokens": "3"}, "output_tokens: str"),
    ],
)
def test_a_wrong_line_of_a_kind_that_gets_no_answer_gets_none(line: object, message: str) -> None:
    code, answers, errors = lines({"op": "reset", **INFO}, line)
    assert (code, answers) == (2, [{}])
    assert message in errors


def test_the_first_operation_must_be_reset() -> None:
    code, answers, errors = lines(pick("a", [1]))
    assert code == 2
    assert "reset" in answers[0]["error"]
    assert "reset" in errors


def test_the_manuals_example_is_true() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "seams.md").read_text()
    manual = page.partition("## The router as JSON lines")[2].partition("\n## ")[0]
    sent = re.findall(r"^> (\{.*)$", manual, re.MULTILINE)
    answer_lines = re.findall(r"^< (\{.*)$", manual, re.MULTILINE)
    code, answers, _ = lines(*sent)
    assert code == 0
    assert answers == [json.loads(line) for line in answer_lines]


def test_the_module_runs_as_a_child_and_answers_line_by_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fairlead_sim.seams", "router", "--preset", "round-robin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:

        def send_operation(operation: dict[str, Any]) -> Any:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(operation) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        assert send_operation({"op": "reset", **INFO}) == {}
        assert [send_operation(pick(str(number), [number]))["endpoint"] for number in range(4)] == INFO["live"]
    assert child.returncode == 0


NAMES = ("a", "b", "c")
EDGE_INFO: dict[str, Any] = {"live": NAMES, "ttft_slo": 5.0}


def edge_request(name: object = "x", tokens: Any = 1600, blocks: Any = (1, 2, 3), **more: Any) -> Any:
    return SimpleNamespace(id=name, prompt_tokens=tokens, blocks=blocks, **more)


def edge_endpoints(**fields: Any) -> list[Any]:
    return [SimpleNamespace(id=name, **fields) for name in NAMES]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        *[({"request": edge_request(tokens=tokens)}, "request.prompt_tokens") for tokens in ("12", None, -1, math.nan)],
        ({"request": edge_request(None)}, "request.id"),
        *[({"request": edge_request(blocks=blocks)}, "request.blocks") for blocks in ("abc", 7)],
        ({"endpoints": edge_endpoints(inflight="3")}, "endpoint.inflight"),
        ({"endpoints": edge_endpoints(matched_tokens=[1])}, "endpoint.matched_tokens"),
        ({"endpoints": [SimpleNamespace(up=True)]}, "endpoint.id"),
        ({"endpoints": None}, "endpoints"),
        *[({"now": now}, "now") for now in (None, math.nan)],
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(wrong: dict[str, Any], field: str) -> None:
    seam, other = router(EDGE_INFO), router(EDGE_INFO)
    with pytest.raises(BadInput) as caught:
        seam.pick(**{"request": edge_request(), "endpoints": edge_endpoints(), "now": 0.0, **wrong})
    assert caught.value.field == field
    assert field in str(caught.value)
    later = [edge_request(str(n), blocks=(n,)) for n in range(9)]
    assert [seam.pick(incoming, edge_endpoints(), 1.0) for incoming in later] == [
        other.pick(incoming, edge_endpoints(), 1.0) for incoming in later
    ]


@pytest.mark.parametrize("value", [-3, math.nan, math.inf, None])
def test_impossible_counters_are_unknown(value: Any) -> None:
    odd, plain = router(EDGE_INFO), router(EDGE_INFO)
    counters = ("inflight", "waiting", "running", "pending_prefill_tokens", "inflight_tokens", "kv_util")
    odd_endpoints = edge_endpoints(**dict.fromkeys([*counters, "matched_tokens"], value))
    asked = [edge_request(str(n), 4000, (n, -n)) for n in range(30)]
    assert [odd.pick(incoming, odd_endpoints, 0.0) for incoming in asked] == [
        plain.pick(incoming, edge_endpoints(), 0.0) for incoming in asked
    ]


@pytest.mark.parametrize(
    "field", ["ttft_slo", "prefill_s_per_token", "kv_tokens", "max_seqs", "step_tokens", "block_tokens"]
)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e-300, None])
def test_hints_that_no_engine_has_are_left_out(field: str, value: Any) -> None:
    seam = router({**EDGE_INFO, field: value})
    assert {seam.pick(edge_request(str(n), blocks=(n,)), edge_endpoints(), 0.0) for n in range(9)} == set(NAMES)


def test_hints_that_are_words_and_names_that_collide_are_refused() -> None:
    with pytest.raises(BadInput, match=r"info\.kv_tokens"):
        router({**EDGE_INFO, "kv_tokens": "many"})
    with pytest.raises(BadInput, match="live"):
        router({"live": [1, "1"]})


def test_a_count_of_what_is_held_moves_nothing() -> None:
    for preset in ("dual-hash", "dualmap"):
        seam: Any = router(EDGE_INFO, preset=preset)
        seam.pick(edge_request(), edge_endpoints(), 0.0)
        assert seam.rebalance(edge_endpoints(held=3), 9.0) == []


def share(seam: Any, at: float, count: int, inflight: dict[str, int], *, first: bool = False) -> dict[str, int]:
    """Returns the requests per endpoint, of ``count`` prompts that share nothing."""
    picked = dict.fromkeys(NAMES, 0)
    rest = {"pending_prefill_tokens": 0, "matched_tokens": 0}
    counted = [
        SimpleNamespace(id=each, inflight=inflight[each], inflight_tokens=8000 * inflight[each], **rest)
        for each in NAMES
    ]
    for number in range(count):
        name = f"{at}/{number}"
        chosen = seam.pick(edge_request(name, 8000, tuple(f"{name}/{block}" for block in range(15))), counted, at)
        if first:
            seam.on_first_token(edge_request(name), chosen, at, 0)
        picked[chosen] += 1
    return picked


@pytest.mark.parametrize("first", [False, True])
def test_a_tool_without_completions_is_trusted_with_its_counts(first: bool) -> None:
    seam = router(EDGE_INFO)
    share(seam, 0.0, INFERENCE_REQUESTS, {"a": 1, "b": 1, "c": 1}, first=first)
    picked = share(seam, INFERENCE_SECONDS, 60, {"a": 45, "b": 1, "c": 45}, first=first)
    assert picked["b"] == 60


def test_a_long_request_does_not_disable_a_tools_completions() -> None:
    seam = router(EDGE_INFO)
    quick = edge_request("quick", 100, ())
    seam.on_complete(quick, seam.pick(quick, edge_endpoints(), 0.0), 0.0, 1)
    share(seam, 0.0, INFERENCE_REQUESTS, {"a": 0, "b": 0, "c": 0})
    picked = share(seam, INFERENCE_SECONDS, 60, {"a": 45, "b": 1, "c": 45})
    assert max(picked.values()) <= 25


def test_requests_of_an_endpoint_that_left_are_lost_without_a_report() -> None:
    seam = router(EDGE_INFO, preset="least-request")
    for number in range(30):
        seam.pick(edge_request(str(number), blocks=()), edge_endpoints(), 0.0)
    for number in range(30, 34):  # "a" is gone
        seam.pick(edge_request(str(number), blocks=()), edge_endpoints()[1:], 1.0)
    back = [SimpleNamespace(id="a", inflight=0), SimpleNamespace(id="b"), SimpleNamespace(id="c")]
    assert [seam.pick(edge_request(str(number), blocks=()), back, 2.0) for number in range(34, 44)] == ["a"] * 10


def test_an_endpoint_omitted_from_one_pick_keeps_its_state() -> None:
    seam = router(EDGE_INFO, preset="least-request")
    for number in range(30):
        seam.pick(edge_request(str(number), blocks=()), edge_endpoints(), 0.0)
    seam.pick(edge_request("30", blocks=()), edge_endpoints()[1:], 1.0)
    picked = [seam.pick(edge_request(str(number), blocks=()), edge_endpoints(), 2.0) for number in range(31, 43)]
    assert picked.count("a") in (4, 5)


VIEW_INFO: dict[str, Any] = {**INFO, "prefill_s_per_token": 1e-3}
"""512 tokens take about half a second."""


def endpoint(name: str, *, pending: float = 0.0, inflight: int = 0, **more: Any) -> Any:
    return SimpleNamespace(
        id=name,
        up=True,
        inflight=inflight,
        waiting=inflight,
        pending_prefill_tokens=pending,
        inflight_tokens=pending,
        **more,
    )


def fleet(queued: dict[str, float] | None = None, inflight: int = 3, **more: Any) -> list[Any]:
    """Returns endpoints with so many tokens of requests queued."""
    queued = queued or {}
    return [
        endpoint(name, pending=queued.get(name, 0.0), inflight=inflight if name in queued else 0, **more)
        for name in VIEW_INFO["live"]
    ]


@pytest.mark.parametrize("preset", ["dual-hash", "dualmap"])
def test_what_others_sent_counts_as_the_tool_says(preset: str) -> None:
    free = router(VIEW_INFO, preset=preset).pick(request("r"), fleet(), 0.0)
    assert router(VIEW_INFO, preset=preset).pick(request("r"), fleet({free: 50_000.0}), 0.0) != free


def test_requests_in_flight_are_counted_as_the_tool_does() -> None:
    assert router(VIEW_INFO, preset="least-request").pick(request("r"), fleet({"e0": 9, "e1": 9, "e2": 9}), 0.0) == "e3"


def test_a_tool_that_does_not_count_sent_requests_is_not_trusted() -> None:
    seam = router(VIEW_INFO, preset="least-request")
    assert sorted(seam.pick(request(str(n), (n,)), fleet(), 0.0) for n in range(4)) == INFO["live"]


def test_a_tools_prefill_count_yields_to_our_lower_estimate() -> None:
    """A repeated prompt computes nothing, whatever the tool counts before events come."""

    seam, blocks = router(VIEW_INFO, preset="min-ttft"), tuple(range(40))
    at = seam.pick(request("a", blocks), fleet(matched_tokens=0), 0.0)
    seam.on_first_token(request("a", blocks), at, 1.0, 0)
    assert seam.pick(request("b", blocks), fleet(matched_tokens=0), 1.0) == at
    queued = {at: 2 * 512.0 * len(blocks)}
    assert seam.pick(request("c", blocks), fleet(queued, 2, matched_tokens=0), 1.0) == at
    assert seam.pick(request("d", blocks), fleet(queued, 9, matched_tokens=0), 1.0) != at


@pytest.mark.parametrize(
    ("inflight", "pending", "backlog"),
    [
        (2, 9_000.0, 3.0),  # ours alone; the tool does not know what is cached
        (2, 1_000.0, 1.0),  # ours alone; we do not know
        (3, 9_000.0, 9.0),  # also other requests
        (1, 9_000.0, 3.0),  # not counted
    ],
)
def test_queued_prefill_is_the_lower_count_if_all_requests_are_ours(
    inflight: int, pending: float, backlog: float
) -> None:
    view = EndpointView(0.001, 512)
    view.set_endpoints({"e0": endpoint("e0", pending=pending, inflight=inflight)})
    assert view.load(EndpointLoad("e0", 2, 2, 3.0, 4_000.0)).backlog_seconds == pytest.approx(backlog)


def test_kv_events_take_precedence_over_remembered_prompts() -> None:
    def endpoints(**tokens: int) -> list[Any]:
        return [endpoint(name, matched_tokens=tokens.get(name, 0)) for name in INFO["live"]]

    seam = router(VIEW_INFO, preset="dualmap")
    homes = {router(VIEW_INFO, preset="dualmap").pick(request(f"r{n}"), endpoints(), 0.0) for n in range(40)}
    assert len(homes) == 2
    for home in homes:
        assert router(VIEW_INFO, preset="dualmap").pick(request("r"), endpoints(**{home: 1_024}), 0.0) == home
    first = seam.pick(request("r"), endpoints(), 0.0)
    assert seam.pick(request("s"), endpoints(), 0.1) == first  # under way: no event yet
    for name in ("r", "s"):
        seam.on_first_token(request(name), first, 1.0)
        seam.on_complete(request(name), first, 2.0)
    assert {seam.pick(request(f"t{n}"), endpoints(), 6.9) for n in range(10)} == {first}
    (other,) = homes - {first}
    assert seam.pick(request("u"), endpoints(**{other: 1_024}), 600.0) == other


def view_with_events() -> EndpointView:
    """Returns the view of a tool with KV events, none of them for the blocks of this request."""
    view = EndpointView(1e-3, 512)
    view.set_endpoints({"e0": endpoint("e0", matched_tokens=512)})
    view.add_request("before", (9,), 0.0)
    view.set_endpoints({name: endpoint(name, matched_tokens=0) for name in ("e0", "e1")})
    return view


def test_a_tool_that_reports_only_zeros_reports_nothing() -> None:
    view = EndpointView(1e-3, 512)
    view.set_endpoints({"e0": endpoint("e0", matched_tokens=0)})
    view.add_request("r", (1,), 0.0)
    assert view.cached_tokens("r") is None
    other = view_with_events()
    other.add_request("r", (1,), 0.0)
    assert other.cached_tokens("r") == {}


def test_an_endpoint_that_returns_has_no_requests_in_flight() -> None:
    view = view_with_events()
    view.add_routed("r", "e0", (1, 2), 0.0)
    view.add_routed("s", "e1", (1,), 0.0)
    view.add_request("t", (1, 2, 3), 1.0)
    assert view.cached_tokens("t") == {"e0": 1_024.0, "e1": 512.0}
    view.remove_endpoint("e0")
    assert view.cached_tokens("t") == {"e1": 512.0}
    view.remove_routed("r", 2.0)  # late news of what went with it
    assert view.cached_tokens("t") == {"e1": 512.0}


def test_a_request_that_moves_leaves_nothing_behind() -> None:
    view = view_with_events()
    view.add_routed("r", "e0", (1, 2), 0.0)
    view.add_routed("r", "e1", (1, 2), 0.0)
    view.add_request("s", (1, 2), 0.0)
    assert view.cached_tokens("s") == {"e1": 1_024.0}


@pytest.fixture
def holding() -> LateBindingRouterAdapter:
    seam = router(VIEW_INFO, preset="dualmap")
    assert isinstance(seam, LateBindingRouterAdapter)
    return seam


def test_hits_go_first_and_then_who_came_first(holding: LateBindingRouterAdapter) -> None:
    names = {"long": (1, 2, 3), "first": (7,), "second": (8,)}
    holding.pick(request("warm", (1, 2)), fleet(), 0.0)
    for number, (name, blocks) in enumerate(names.items()):
        holding.pick(request(name, blocks), fleet(), 1.0 + number)
    asked = [request(name) for name in ("second", "long", "first")]
    assert [queued.id for queued in sorted(asked, key=holding.order_key)] == ["long", "first", "second"]


def test_by_default_shorter_prompts_go_first_without_starvation() -> None:
    late = router(VIEW_INFO)
    assert isinstance(late, LateBindingRouterAdapter)
    asked = {}
    for name, first, blocks, at in (("long", 100, 40, 0.0), ("short", 200, 1, 1.0), ("much later", 300, 1, 30.0)):
        asked[name] = request(name, tuple(range(first, first + blocks)))
        late.pick(asked[name], fleet(), at)
    assert [queued.id for queued in sorted(asked.values(), key=late.order_key)] == ["short", "long", "much later"]
    assert late.rebalance([endpoint("e0", held=list(asked.values()))], 40.0) == []


def test_what_is_held_at_a_full_instance_moves_to_its_other_home(holding: LateBindingRouterAdapter) -> None:
    first = holding.pick(request("r0", (1, 2)), fleet(), 0.0)
    held: list[Any] = [request("r0", (1, 2))]
    for number in range(1, 30):
        queued = request(f"r{number}", (1, 2, 100 + number))
        if holding.pick(queued, fleet(), 0.0) == first:
            held.append(queued)
    stations = [endpoint(name, held=held if name == first else []) for name in ("e0", "e1", "e2", "e3")]
    moved = holding.rebalance(stations, 4.0)
    assert moved
    assert {queued.id for queued, _ in moved} <= {queued.id for queued in held}
    assert first not in {to for _, to in moved}
    for queued, to in moved:  # feedback is taken from where it is now
        holding.on_first_token(queued, to, 5.0, 0)
        holding.on_complete(queued, to, 6.0, 10)
    assert holding.rebalance([endpoint(name, held=[]) for name in ("e0", "e1", "e2", "e3")], 7.0) == []


def test_a_request_that_moved_back_and_forth_counts_once(holding: LateBindingRouterAdapter) -> None:
    queued = request("r")
    at = holding.pick(queued, fleet(), 0.0)
    for turn in range(4):
        stations = [endpoint(name, held=[queued] if name == at else []) for name in ("e0", "e1", "e2", "e3")]
        for _, at in holding.rebalance(stations, 10.0 + turn):  # noqa: B007 - the last one is where it is
            pass
    holding.on_complete(queued, at, 20.0, 1)
    assert all(load.inflight == 0 for load in holding._router.loads().values())
