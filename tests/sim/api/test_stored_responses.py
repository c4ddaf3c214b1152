"""Responses that one engine stores: previous ones, the background, cancellation and bounds."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fairlead_sim.api import response_store
from fairlead_sim.runtime.settings import ApiSurface, EngineSettings
from fairlead_testing.http.raw_client import request as raw_request
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.recording import HttpResponse
from fairlead_testing.transcripts.replay import get_request, post_request, send_request, wait_for_value

pytestmark = pytest.mark.simulated
PATH = "/v1/responses"
UNKNOWN = {"type": "invalid_request_error", "param": "response_id", "code": 404}
SYNCHRONOUS = {"message": "Cannot cancel a synchronous response.", **UNKNOWN, "code": 400}


class Client:
    """A client of one engine with a store."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def create(self, **body: Any) -> HttpResponse:
        body = {"model": "sim", "input": "hi", "max_output_tokens": 4, **body}
        return await send_request(self.url.removeprefix("http://"), post_request(PATH, body))

    async def get(self, response_id: str) -> HttpResponse:
        return await send_request(self.url.removeprefix("http://"), get_request(f"{PATH}/{response_id}"))

    async def cancel(self, response_id: str) -> HttpResponse:
        return await send_request(self.url.removeprefix("http://"), post_request(f"{PATH}/{response_id}/cancel", {}))


@asynccontextmanager
async def storing_engine() -> AsyncIterator[tuple[Any, Client]]:
    async with running_engine(EngineSettings(surface=ApiSurface(response_store=True))) as served:
        yield served, Client(served.url)


def events(answer: HttpResponse) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: ")]


async def test_a_response_is_found_as_it_was_sent() -> None:
    async with storing_engine() as (_, client):
        whole = await client.create()
        streamed = events(await client.create(stream=True))[-1]["response"]
        assert (await client.get(whole.json()["id"])).body == whole.body
        assert (await client.get(streamed["id"])).json() == streamed
        assert (await client.cancel(streamed["id"])).json()["error"] == SYNCHRONOUS
        dropped = (await client.create(store=False)).json()["id"]
        error = (await client.get(dropped)).json()["error"]
        assert error == {"message": f"Response with id '{dropped}' not found.", **UNKNOWN}


async def test_a_client_names_its_response() -> None:
    async with storing_engine() as (_, client):
        assert (await client.create(request_id="mine")).json()["id"] == "mine"
        assert (await client.get("mine")).status == 200


async def test_a_previous_response_enters_the_prompt_without_instructions_and_calls() -> None:
    text = 'Yes.<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    async with storing_engine() as (served, client):
        first = await client.create(
            instructions="Old.", tools=[tool], structured_outputs={"choice": [text]}, max_output_tokens=99
        )
        call = first.json()["output"][1]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
        second = await client.create(previous_response_id=first.json()["id"], instructions="New.", input=[result])
        third = await client.create(previous_response_id=second.json()["id"], input="more")
        turns = served.app.response_store.find(third.json()["id"]).turns
    assert second.json()["previous_response_id"] == first.json()["id"]
    assert [(turn["role"], turn["content"]) for turn in turns[:3]] == [
        ("user", "hi"),
        ("assistant", "Yes."),
        ("tool", "42"),
    ]
    assert [turn["role"] for turn in turns[3:]] == ["assistant", "user"]


async def test_a_response_in_the_background_is_queued_until_it_is_done() -> None:
    async with storing_engine() as (served, client):
        served.engine.pause("keep", lambda: None)
        begun = (await client.create(background=True)).json()
        assert (begun["status"], begun["output"], begun["usage"], begun["background"]) == ("queued", [], None, True)
        assert (await client.get(begun["id"])).json() == begun
        served.engine.resume()

        async def status() -> str:
            return str((await client.get(begun["id"])).json()["status"])

        await wait_for_value(status, lambda value: value != "queued", "status")
        done = (await client.get(begun["id"])).json()
        assert (done["status"], done["usage"]["output_tokens"]) == ("incomplete", 4)
        assert (await client.cancel(begun["id"])).json()["error"] == SYNCHRONOUS


async def test_a_cancelled_response_leaves_the_engine() -> None:
    async with storing_engine() as (served, client):
        begun = (await client.create(background=True, max_output_tokens=20_000)).json()
        cancelled = await client.cancel(begun["id"])
        assert (cancelled.status, cancelled.json()) == (200, begun | {"status": "cancelled"})
        assert not served.engine.responses
        assert (await client.get(begun["id"])).json()["status"] == "cancelled"
        assert (await client.cancel(begun["id"])).json()["error"] == SYNCHRONOUS


async def test_a_stream_in_the_background_can_be_followed_from_any_event() -> None:
    async with storing_engine() as (_, client):
        sent = events(await client.create(background=True, stream=True))
        response_id = sent[0]["response"]["id"]
        assert (sent[0]["response"]["status"], sent[-1]["type"]) == ("in_progress", "response.completed")
        for query, begin in (("stream=true", 0), ("stream=1&starting_after=4", 5), ("stream=on&starting_after=-3", -2)):
            assert events(await client.get(f"{response_id}?{query}")) == sent[begin:]
        assert (await client.get(f"{response_id}?starting_after=4")).json()["status"] == "incomplete"


async def test_a_stream_of_a_response_without_events_breaks_off() -> None:
    async with storing_engine() as (_, client):
        response_id = (await client.create()).json()["id"]
        with pytest.raises(EOFError):
            await client.get(f"{response_id}?stream=true")


async def test_a_request_that_is_refused_in_the_background_is_not_stored() -> None:
    async with storing_engine() as (served, client):
        served.engine.is_core_dead = True
        refused = await client.create(background=True, request_id="mine")
        assert (refused.status, (await client.get("mine")).status) == (500, 404)


async def test_the_oldest_responses_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_store, "SIM_STORED_RESPONSES", 2)
    async with storing_engine() as (_, client):
        ids = [(await client.create()).json()["id"] for _ in range(3)]
        assert [(await client.get(name)).status for name in ids] == [404, 200, 200]
        monkeypatch.setattr(response_store, "SIM_STORED_RESPONSE_BYTES", 1_000)
        long = (await client.create(input="x" * 900)).json()["id"]
        assert [(await client.get(name)).status for name in [*ids, long]] == [404, 404, 200, 200]


async def test_without_a_store_nothing_is_found() -> None:
    async with running_engine() as served:
        client = Client(served.url)
        answer = await raw_request(
            served.url, {"model": "sim", "input": "x"}, path=PATH, more="content-type: application/json\r\n"
        )
        assert (await client.get(answer.json["id"])).status == 404
