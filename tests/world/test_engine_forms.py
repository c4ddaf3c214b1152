"""Errors and streams in the forms that engines of many releases have, from their sources.

`engine_forms.json` has a row for each: the bytes, and the place in the source. What is right for a
client depends on the kind of a row alone.
"""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.engines.scripted import EngineCall, HangUp, Script, well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, gateway_before
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated
FORMS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "engine_forms.json").read_text())
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"model": "tiny", "prompt": "hi"}),
    "embeddings": ("/v1/embeddings", {"model": "tiny", "input": "hi"}),
    "responses": ("/v1/responses", {"model": "tiny", "input": "hi"}),
    "messages": ("/v1/messages", GOOD | {"max_tokens": 9}),
}
PASSED_ON = ("responses", "messages")
_WITH_WORDS = ("error", "message", "detail", "msg")
_OF_ACCOUNTS = (401, 402, 403)
_TRIED_ELSEWHERE = (429, 500, 502, 503, 504, 529)
_OTHER_PATHS = {"Not Found", "Method Not Allowed"}


def is_(kind: str, *, stream: bool, passed_on: bool = False) -> list[Any]:
    """The rows of a kind, as parameters. Of streams, those that are passed on have other ends."""
    rows = [row for row in FORMS if row["stream"] is stream and row["kind"].startswith(kind)]
    if stream:
        rows = [row for row in rows if (row["dialect"] in PASSED_ON) is passed_on]
    return [pytest.param(row, id=row["id"]) for row in rows]


async def responses_to(row: dict[str, Any]) -> tuple[RawResponse, list[EngineCall]]:
    """Sends a request to engines of which the first answers with the row, the others well."""
    answer, calls, _ = await outcome_of(row)
    return answer, calls


async def outcome_of(row: dict[str, Any]) -> tuple[RawResponse, list[EngineCall], str | None]:
    """The same, with the error that the gateway records."""
    calls: list[EngineCall] = []
    path, body = REQUESTS.get(row["dialect"], ("/v1/chat/completions", GOOD))
    if row["stream"]:
        body = body | {"stream": True}
    async with gateway_before([replay(row, calls)] * 2) as running:
        answer = await request(running.url, body, path=path)
        await wait_until(lambda: running.gateway.inflight_count() == 0)
        outcome = running.gateway.decisions.latest(1)[0]
        return answer, calls, None if outcome is None else outcome.error


def replay(row: dict[str, Any], calls: list[EngineCall]) -> Script:
    async def script(call: EngineCall) -> None:
        calls.append(call)
        if len(calls) > 1:
            await well_behaved(call)
        elif not row["stream"]:
            await call.respond(row["body"].encode(), f"{row['status']} X", row["content_type"])
        else:
            await call.start_stream(row["content_type"])
            await call.chunk(row["body"].encode())
            if row.get("end") == "cut":
                raise HangUp
            await call.chunk(b"")

    return script


def words(value: object) -> str:
    """The first text for people in an error, wherever it is."""
    if isinstance(value, str):
        return value
    parts = (
        value
        if isinstance(value, list)
        else [value.get(name) for name in _WITH_WORDS]
        if isinstance(value, dict)
        else []
    )
    return next(filter(None, map(words, parts)), "")


@pytest.mark.parametrize("row", [*is_("error", stream=False), *is_("refuse", stream=False)])
async def test_a_refusal_has_the_engines_words_and_a_fault_goes_to_another_engine(row: dict[str, Any]) -> None:
    answer, calls = await responses_to(row)
    status = row["status"]
    error = json.loads(row["body"]) if row["body"].startswith(("{", "[{")) else row["body"].strip()
    if status == 200:
        code = error["error"].get("code") if isinstance(error.get("error"), dict) else error.get("code")
        status = code or 500
    is_lost = row["kind"] == "error.unknown_model" and row["engine"] == "vllm"
    if is_lost or status in _TRIED_ELSEWHERE:
        assert (answer.status, len(calls)) == (200, 2)
        return
    assert (answer.status, len(calls)) == (status, 1)
    assert not answer.json["error"]["message"].startswith("<")
    assert (answer.json.get("type") == "error") == (row["dialect"] == "messages")
    if row["kind"] != "error.proxy_html" and "html" not in row["content_type"] and status not in _OF_ACCOUNTS:
        text = words(error)
        assert text in _OTHER_PATHS or text in answer.json["error"]["message"]


@pytest.mark.parametrize("row", [*is_("garbage", stream=False), *is_("abort.plain", stream=False)])
async def test_what_is_no_whole_answer_goes_to_another_engine(row: dict[str, Any]) -> None:
    answer, calls = await responses_to(row)
    assert (answer.status, len(calls)) == (200, 2)


@pytest.mark.parametrize("row", is_("stream", stream=True, passed_on=True))
async def test_a_stream_that_is_passed_on_is_judged_by_its_events(row: dict[str, Any]) -> None:
    answer, calls, error = await outcome_of(row)
    assert answer.status == 200
    is_cut = row.get("end") == "cut"
    if "event: error" in row["body"] or (is_cut and "delta" not in row["body"]):  # nothing has been sent
        assert (len(calls), error) == (2, None)
        return
    assert len(calls) == 1
    shown = re.sub(r'("id": ?"resp_[A-Za-z0-9_-]*?)[0-9a-f]{40}"', r'\1"', answer.body.decode())
    assert shown.startswith(row["body"])
    assert (answer.complete, error) == (True, "cut" if is_cut else None)
    assert ("event: error" in answer.body.decode()) == is_cut


@pytest.mark.parametrize("row", is_("framing", stream=True))
async def test_every_event_that_the_standard_allows_is_read(row: dict[str, Any]) -> None:
    answer, calls = await responses_to(row)
    assert answer.status == 200
    lines = answer.body.decode().removeprefix("\ufeff").splitlines()
    assert [line for line in lines if line.startswith("data:")][-1].removeprefix("data:").strip() == "[DONE]"
    assert len(calls) == (2 if '"error"' in row["body"] else 1)


@pytest.mark.parametrize("row", [*is_("stream", stream=True), *is_("abort", stream=True)])
async def test_a_stream_that_is_no_whole_answer_never_looks_like_one(row: dict[str, Any]) -> None:
    answer, calls = await responses_to(row)
    is_error = row["kind"] in ("stream.error_first", "stream.error_field")
    if is_error and answer.status != 200:
        assert (answer.status, len(calls)) == (400, 1)
        assert answer.json["error"]["message"] in row["body"]
        return
    assert answer.status == 200
    is_whole = answer.events[-1] == "[DONE]"
    assert is_whole or "error" in json.loads(answer.events[-1])
    is_broken = (
        is_error or row["kind"].startswith(("abort", "stream.cut", "stream.error")) or "cancelled" in row["body"]
    )
    assert len(calls) == (2 if is_broken and is_whole else 1)


def test_each_row_says_which_engine_and_where_in_its_source() -> None:
    assert [row["id"] for row in FORMS if not (row["engine"] and row["source"])] == []
    repeated = [name for name, rows in itertools.groupby(sorted(row["id"] for row in FORMS)) if len(list(rows)) > 1]
    assert repeated == []
