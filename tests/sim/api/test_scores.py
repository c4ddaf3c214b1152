"""Rankings, scores and classes of the simulated engine, in vLLM's forms and with its usage."""

import json
from typing import Any

import pytest

from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.replay import post_request, send_request

pytestmark = pytest.mark.simulated
QUERY = "what is the capital of france"
DOCUMENTS = ["berlin is in germany", "paris is the capital of france", "x"]


async def answer(path: str, task: str = "both", **body: Any) -> tuple[int, Any]:
    async with running_engine(EngineSettings(task=task)) as engine:
        found = await send_request(engine.url.removeprefix("http://"), post_request(path, {"model": "sim", **body}))
        return found.status, json.loads(found.body)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("top", [None, 0, 1, 2, 9])
async def test_the_best_documents_come_first(path: str, top: int | None) -> None:
    status, found = await answer(path, query=QUERY, documents=DOCUMENTS, top_n=top)
    assert status == 200
    assert found["id"].startswith("rerank-")
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 3 * len(QUERY.split())
    scores = [one["relevance_score"] for one in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == (min(top, 3) if top else 3)
    best = found["results"][0]
    assert (best["index"], best["document"]) == (1, {"text": DOCUMENTS[1], "multi_modal": None})


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ("a b", "a b", 1),
        ("a", ["a", "b"], 2),
        (["a"], ["a", "b"], 2),
        (["a", "b"], ["a", "c"], 2),
        ([], ["a"], 0),
        (["a", "b"], ["a"], 0),
        ("a", [], 0),
    ],
)
async def test_pairs_get_a_score_each(path: str, first: object, second: object, count: int) -> None:
    status, found = await answer(path, text_1=first, text_2=second)
    if not count:
        assert (status, found["error"]["message"]) == (400, "Input lengths must be either 1:1, 1:N or N:N")
        return
    assert (status, found["object"]) == (200, "list")
    assert [(one["index"], one["object"]) for one in found["data"]] == [(at, "score") for at in range(count)]
    assert found["data"][0]["score"] == 1.0
    assert found["usage"]["completion_tokens"] == 0


async def test_inputs_get_a_class_each() -> None:
    status, found = await answer("/classify", input=["one", "two", "one"])
    assert status == 200
    first, second, third = ({**one, "index": 0} for one in found["data"])
    assert first == third != second
    assert sum(first["probs"]) == pytest.approx(1.0)
    assert first["num_classes"] == 2


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/rerank", {"query": 5, "documents": ["a"]}, "query"),
        ("/rerank", {"query": "a"}, "documents"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/classify", {}, "input"),
        ("/classify", {"input": {}}, "input"),
    ],
)
async def test_a_wrong_field_is_named(path: str, body: dict[str, Any], field: str) -> None:
    status, found = await answer(path, **body)
    assert (status, field in found["error"]["message"]) == (400, True)


async def test_an_engine_that_only_generates_has_none_of_these_paths() -> None:
    for path in ("/rerank", "/v1/score", "/classify"):
        assert (await answer(path, "generate", query="a", documents=["b"]))[0] == 404
