"""An engine with another name for the model gets that name; the client sees its own."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.fleet.model import Fleet, RequestPolicy, Role
from fairlead.limits import Limits
from fairlead_gateway.openai.model_names import ServedNameRewriter, body_with_model, target_with_model
from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.engines.scripted import EngineCall, event, reset, responds, scripted_engine, streams, token, usage
from fairlead_testing.gateway.running_gateway import GOOD, MODEL_KEY, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send

pytestmark = pytest.mark.simulated

THEIRS = "Qwen/Qwen3-8B"


def renamed(fleet: Fleet, *names: str | None) -> Fleet:
    """Returns the fleet with the engines' names of its model; ``THEIRS`` by default."""
    instances = fleet.instances[MODEL_KEY]
    given = names or (THEIRS,) * len(instances)
    return replace(
        fleet,
        instances={
            MODEL_KEY: tuple(replace(pod, served_name=name) for pod, name in zip(instances, given, strict=True))
        },
    )


async def strict(call: EngineCall) -> None:
    """Serves one model, under one name, and says it everywhere."""
    asked = call.json
    if asked["model"] != THEIRS:
        await call.respond(
            {"error": {"message": f"The model `{asked['model']}` does not exist.", "code": 404}}, "404 No"
        )
        return
    if not asked.get("stream"):
        counted = usage(7, 4, 3)["usage"]
        await call.respond({"object": "chat.completion", "model": THEIRS, "choices": [{"index": 0}], "usage": counted})
        return
    await call.start_stream()
    for text in ("a", f'"model":"{THEIRS}"', "c"):
        await call.event({"object": "chat.completion.chunk", "model": THEIRS} | token(text))
    await call.event({"model": THEIRS} | usage(7, 4, 3))
    await call.finish()


# --- the request --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["tiny", "default/tiny"])
async def test_the_engine_is_asked_for_its_own_name_and_not_a_byte_else_changes(asked: str) -> None:
    content = b'"\\u00e9 \\ud83d\\ude00 {\\"model\\":\\"tiny\\"}"'
    body = (
        b'{ "messages" : [{"role":"user","content":' + content + b'}],\n "model":\t"%b" , "x":1.0e2}' % asked.encode()
    )
    async with scripted_engine(strict) as engine, running_gateway(renamed(fleet_of([engine.url]))) as running:
        answer = await request(running.url, body)
        assert (answer.status, answer.json["model"]) == (200, asked)
        assert engine.calls[0].body == body.replace(b'\t"%b"' % asked.encode(), b'\t"Qwen/Qwen3-8B"')


async def test_of_two_engines_with_two_names_each_is_asked_for_the_one_that_it_knows() -> None:
    async def own(call: EngineCall) -> None:
        await call.respond(
            {"model": call.json["model"], "choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}]}
        )

    async with scripted_engine(strict) as first, scripted_engine(own) as second:
        fleet = fleet_of([first.url, second.url], preset="round-robin")
        async with running_gateway(renamed(fleet, THEIRS, None)) as running:
            assert {(await request(running.url, GOOD)).json["model"] for _ in range(4)} == {"tiny"}
        assert {call.json["model"] for call in first.calls} == {THEIRS}
        assert {call.json["model"] for call in second.calls} == {"tiny"}


async def test_a_request_that_is_tried_again_elsewhere_asks_for_the_other_engines_name() -> None:
    async with scripted_engine(reset) as first, scripted_engine(strict) as second:
        urls = [first.url, second.url]
        async with running_gateway(renamed(fleet_of(urls, preset="round-robin"), "other/name", THEIRS)) as running:
            answers = [await request(running.url, GOOD) for _ in range(2)]
        assert [(answer.status, answer.json["model"]) for answer in answers] == [(200, "tiny")] * 2
        assert {call.json["model"] for call in first.calls} == {"other/name"}


async def test_a_get_names_it_in_the_query() -> None:
    async def script(call: EngineCall) -> None:
        await call.respond({"path": call.path, "response": {"model": THEIRS}})

    opened = RequestPolicy(allowed_paths=frozenset({"/v1/responses/*"}))
    async with (
        scripted_engine(script) as engine,
        running_gateway(renamed(fleet_of([engine.url], requests=opened))) as running,
    ):
        (answer,) = await send(running.url, get_request("/v1/responses/resp_1?model=default%2Ftiny&include=a%26b"))
        assert answer.json["path"] == "/v1/responses/resp_1?model=Qwen%2FQwen3-8B&include=a%26b"
        assert answer.json["response"] == {"model": "default/tiny"}


def test_what_needs_no_rewriting_is_left_alone() -> None:
    assert body_with_model(THEIRS, b"") == b""
    assert target_with_model(THEIRS, "/v1/x") == "/v1/x"
    assert target_with_model(THEIRS, "/v1/x?model=a&empty=") == "/v1/x?model=Qwen%2FQwen3-8B&empty="


# --- the answer ---------------------------------------------------------------------------------------------------------


async def test_every_event_of_a_stream_names_the_model_that_was_asked_for() -> None:
    async with scripted_engine(strict) as engine, running_gateway(renamed(fleet_of([engine.url]))) as running:
        answer = await request(running.url, GOOD | {"stream": True})
        events = [json.loads(data) for data in answer.events[:-1]]
        assert [chunk["model"] for chunk in events] == ["tiny"] * 3
        assert events[1]["choices"][0]["delta"]["content"] == f'"model":"{THEIRS}"'  # text is the model's own
        assert answer.events[-1] == "[DONE]"


async def test_a_stream_that_breaks_is_continued_by_an_engine_with_a_name_of_its_own() -> None:
    breaks = streams({"id": "1", "model": "first/name"} | token("a"), end=reset)

    rest = streams({"id": "2", "model": THEIRS} | token("b", "stop"))

    async with scripted_engine(breaks) as first, scripted_engine(rest) as second:
        urls = [first.url, second.url]
        fleet = renamed(fleet_of(urls, preset="round-robin"), "first/name", THEIRS)
        async with running_gateway(fleet) as running:
            answers = [await request(running.url, GOOD | {"stream": True, "temperature": 0}) for _ in range(2)]
        for answer in answers:
            assert {json.loads(data)["model"] for data in answer.events[:-1]} == {"tiny"}
        assert {call.json["model"] for call in second.calls} == {THEIRS}


async def test_a_long_answer_that_passes_in_pieces_is_renamed_wherever_it_is_cut() -> None:
    whole = json.dumps({"data": ["x" * 50, {"model": THEIRS}] * 3, "model": THEIRS}).encode()

    async def main(size: int) -> None:
        async def script(call: EngineCall) -> None:
            await call.start_stream("application/json")
            for at in range(0, len(whole), size):
                await call.chunk(whole[at : at + size])
                await asyncio.sleep(0)
            await call.chunk(b"")

        async with (
            scripted_engine(script) as engine,
            running_gateway(renamed(fleet_of([engine.url])), Limits(response_buffer_bytes=20)) as running,
        ):
            answer = await request(running.url, GOOD)
            assert (answer.status, answer.complete) == (200, True)
            assert answer.json == json.loads(whole.replace(THEIRS.encode(), b"tiny"))

    for size in (1, 7, 64):
        await main(size)


async def test_a_long_answer_of_a_known_length_gets_another_framing() -> None:
    async with (
        scripted_engine(responds({"model": THEIRS, "data": "x" * 1_000})) as engine,
        running_gateway(renamed(fleet_of([engine.url])), Limits(response_buffer_bytes=20)) as running,
    ):
        connection = await RawConnection.connect(running.url)
        for _ in range(2):
            await connection.send(post_request(GOOD, close=False))
            assert (await connection.read_response()).json == {"model": "tiny", "data": "x" * 1_000}
        await connection.close()


async def test_a_passed_on_stream_is_renamed_too_and_what_is_no_json_is_not() -> None:
    created = b'event: response.created\ndata: {"response":{"model":"Qwen/Qwen3-8B"}}\n\n'
    completed = b'event: response.completed\ndata: {"response":{}}\n\n'

    async def script(call: EngineCall) -> None:
        if call.path == "/v1/audio/speech":
            await call.respond(b'"model":"Qwen/Qwen3-8B"', kind="audio/mpeg")
            return
        await call.start_stream()
        await call.chunk(created + completed)
        await call.chunk(b"")

    async with scripted_engine(script) as engine, running_gateway(renamed(fleet_of([engine.url]))) as running:
        streamed = await request(running.url, {"model": "tiny", "stream": True}, path="/v1/responses")
        assert streamed.body == created.replace(THEIRS.encode(), b"tiny") + completed
        speech = await request(running.url, {"model": "tiny"}, path="/v1/audio/speech")
        assert speech.body == b'"model":"Qwen/Qwen3-8B"'


@given(
    st.lists(
        st.sampled_from([b'"model":"a/b"', b'"model": "a/b"', b'"mod', b'\\"model\\":\\"a/b\\"', b'"', b"a/b", b"x"])
    ),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_pieces_cut_anywhere_give_what_the_whole_gives(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts)
    pieces, at = [], 0
    while at < len(text):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(text[at : at + size])
        at += size
    renaming = ServedNameRewriter("a/b", 'c"d')
    passed = b"".join(b"".join(renaming.rewrite_chunks([piece], False)) for piece in pieces)
    passed += b"".join(renaming.rewrite_chunks([], True))
    assert passed == ServedNameRewriter("a/b", 'c"d').rewrite(text)
    assert passed == text.replace(b'"model":"a/b"', b'"model":"c\\"d"').replace(b'"model": "a/b"', b'"model": "c\\"d"')


# --- engines that are engines -------------------------------------------------------------------------------------------


@pytest.mark.sockets
async def test_simulated_engine_under_another_name_answers_and_refuses_our_name() -> None:
    async with (
        engine_process("--speed", "50", model=THEIRS) as engine,
        running_gateway(renamed(fleet_of([engine.url]))) as running,
    ):
        whole = await request(running.url, GOOD | {"max_tokens": 3})
        assert (whole.status, whole.json["model"]) == (200, "tiny")
        streamed = await request(running.url, GOOD | {"max_tokens": 3, "stream": True})
        assert {json.loads(data)["model"] for data in streamed.events[:-1]} == {"tiny"}
        tokens = await request(running.url, {"model": "tiny", "prompt": "a b c"}, path="/tokenize")
        assert tokens.json["count"] > 0
        running.gateway.update_fleet(fleet_of([engine.url], version=2))
        assert (await request(running.url, GOOD)).status == 502  # the engine does not know our name


@pytest.mark.sockets
async def test_a_hand_over_asks_both_engines_for_their_own_names() -> None:
    long = GOOD | {"messages": [{"role": "user", "content": "word " * 4_000}], "max_tokens": 3, "stream": True}
    async with (
        engine_process("--speed", "50", "--kv-connector", "nixl", "--kv-role", "kv_producer", model="a/p") as first,
        engine_process("--speed", "50", "--kv-connector", "nixl", "--kv-role", "kv_consumer", model="a/d") as second,
    ):
        fleet = renamed(fleet_of([first.url, second.url]), "a/p", "a/d")
        prefill, decode = fleet.instances[MODEL_KEY]
        prefill = replace(prefill, role=Role.PREFILL, transfer="nixl")
        decode = replace(decode, role=Role.DECODE, transfer="nixl")
        async with running_gateway(replace(fleet, instances={MODEL_KEY: (prefill, decode)})) as running:
            answer = await request(running.url, long)
            assert {json.loads(data)["model"] for data in answer.events[:-1]} == {"tiny"}
            logged = running.gateway.decisions.find(answer.fields["x-fairlead-decision"])[0]
            story = logged.records[-1].handoff
            assert (story.outcome, story.reason) == ("done", "long")


def test_events_are_looked_at_whole() -> None:
    assert ServedNameRewriter(THEIRS, "tiny").rewrite_events([event({"model": THEIRS}), event("[DONE]")]) == [
        event({"model": "tiny"}),
        event("[DONE]"),
    ]


async def test_flood_of_tiny_events_that_would_be_rewritten_ends_the_stream() -> None:
    async def flood(call: EngineCall) -> None:
        await call.start_stream()
        await call.event({"model": call.json["model"], **token("hi")})
        await asyncio.sleep(1.0)  # the first part has passed
        await call.chunk(b'data: {"c":1}\n\n' * 4_000)
        await call.wait_closed()

    async with scripted_engine(flood) as engine, running_gateway(renamed(fleet_of([engine.url]))) as running:
        answer = await request(running.url, GOOD | {"stream": True})
        assert b'"stream_garbage"' in answer.body
        assert answer.body.count(b'"c":1') < 1_000
