"""The router seam: terms of the protocol, choices of the production router."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_sim.seams import main, router

INFO = {
    "n": 4,
    "live": ["e0", "e1", "e2", "e3"],
    "block_tokens": 512,
    "ttft_slo": 5.0,
    "prefill_s_per_token": 1.45e-4,
    "kv_tokens": 1_200_000,
    "max_seqs": 256,
    "step_tokens": 20_480,
}


def request(name: object, blocks: tuple[Any, ...] = (1, 2, 3, 4), **more: Any) -> Any:
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
    one, two = router(INFO), router(INFO)
    names = [f"r{number}" for number in range(50)]
    first = [one.pick(request(name, (index, index + 1)), ALL, 0.0) for index, name in enumerate(names)]
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
    one = pick("a", [1, 2, 3])
    _, answers, _ = lines({"op": "reset", **INFO}, one, {"op": "reset", **INFO}, one)
    assert answers[1] == answers[3]


@pytest.mark.parametrize(
    ("line", "said"),
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
def test_a_wrong_line_is_named_answered_and_skipped(line: object, said: str) -> None:
    code, answers, errors = lines({"op": "reset", **INFO}, line, pick("a", [1]))
    assert (code, len(answers)) == (2, 3)
    assert said in answers[1]["error"]
    assert errors.startswith("line 2: ")
    assert answers[2] == lines({"op": "reset", **INFO}, pick("a", [1]))[1][1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"op": "endpoints", "live": []}, "endpoints: now is missing"),
        ({"op": "endpoints", "live": 3, "now": 0}, "endpoints: live: int where a list belongs"),
        ({"op": "first_token", "now": 0, "id": "a"}, "first_token: endpoint is missing"),
        ({"op": "first_token", "now": 0, "endpoint": "e0"}, "request.id is missing"),
        ({"op": "complete", "now": 0, "id": "a", "endpoint": "e0", "output_tokens": "3"}, "output_tokens: str"),
    ],
)
def test_a_wrong_line_of_a_kind_that_gets_no_answer_gets_none(line: object, said: str) -> None:
    code, answers, errors = lines({"op": "reset", **INFO}, line)
    assert (code, answers) == (2, [{}])
    assert said in errors


def test_the_first_operation_must_be_reset() -> None:
    code, answers, errors = lines(pick("a", [1]))
    assert code == 2
    assert "reset" in answers[0]["error"]
    assert "reset" in errors


def test_the_manuals_example_is_true() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "seams.md").read_text()
    manual = page.partition("## The router as JSON lines")[2].partition("\n## ")[0]
    sent = re.findall(r"^> (\{.*)$", manual, re.MULTILINE)
    told = re.findall(r"^< (\{.*)$", manual, re.MULTILINE)
    code, answers, _ = lines(*sent)
    assert code == 0
    assert answers == [json.loads(line) for line in told]


def test_the_module_runs_as_a_child_and_answers_line_by_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fairlead_sim.seams", "router", "--preset", "round-robin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def send_operation(operation: dict[str, Any]) -> Any:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(operation) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        assert send_operation({"op": "reset", **INFO}) == {}
        assert [send_operation(pick(str(number), [number]))["endpoint"] for number in range(4)] == [
            "e0",
            "e1",
            "e2",
            "e3",
        ]
        child.stdin.close()
        assert child.wait(timeout=30) == 0
