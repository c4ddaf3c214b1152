"""Paths besides chat, completions and embeddings: known ones, and ones passed through."""

import asyncio
import json

import pytest

from fairlead.fleet.model import Fleet, Model, RequestPolicy
from fairlead_gateway.openai.request import is_passthrough_path, open_paths
from fairlead_testing.engines.scripted import EngineCall, HangUp, reset, responds, scripted_engine, streams
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send

pytestmark = pytest.mark.simulated

KNOWN: dict[str, dict[str, object]] = {
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/rerank": {"query": "q", "documents": ["a"]},
    "/v1/rerank": {"query": "q", "documents": ["a"]},
    "/v2/rerank": {"query": "q", "documents": ["a"]},
    "/score": {"text_1": "a", "text_2": ["b"]},
    "/v1/score": {"text_1": "a", "text_2": ["b"]},
    "/classify": {"input": ["a"]},
    "/v1/classify": {"input": ["a"]},
}
PASSED = ["/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/pooling", "/v1/audio/speech"]
OPENED = RequestPolicy(allowed_paths=frozenset({"/v1/responses/*", "/v1/files"}))


async def _echo(call: EngineCall) -> None:
    await call.respond({"path": call.path, "got": call.json})


@pytest.mark.parametrize("path", [*KNOWN, *PASSED])
async def test_a_path_is_answered_by_an_engine_of_the_model_that_the_body_names(path: str) -> None:
    asked = {"model": "default/tiny", "é": 1.50, **KNOWN.get(path, {"input": "x", "messages": []})}
    async with scripted_engine(_echo) as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, asked, path=path)
        assert answer.status == 200
        assert answer.fields["x-fairlead-instance"] == "e-0/0/0"
        added = {"store": False} if path == "/v1/responses" else {}
        assert answer.json == {"path": path, "got": asked | {"model": "tiny"} | added}
        assert running.gateway.decisions.find(answer.fields["x-fairlead-decision"])


@pytest.mark.parametrize("path", [*KNOWN, *PASSED])
async def test_hand_off_fields_go_no_further_on_any_of_them(path: str) -> None:
    rest = b'"model":"tiny","messages":[],"input":"a","prompt":"a","x":"kv_transfer_params"'
    sent = b'{"kv\\u005ftransfer_params":{"a":1},%b,"ec_transfer_params":2}' % rest
    async with scripted_engine(_echo) as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, sent, path=f"{path}?kv_transfer_params=1")).status == 200
        added = b'"store":false,' if path == "/v1/responses" else b""
        assert engine.calls[0].body == b"{%b%b}" % (added, rest)
        assert engine.calls[0].path == path


async def test_a_get_names_its_model_in_the_query_which_the_engine_gets_with_its_own_name() -> None:
    async def script(call: EngineCall) -> None:
        assert (call.header("content-length") is None) == ("/cancel" not in call.path)
        await call.respond({"path": call.path})

    async with gateway_of(script, requests=OPENED) as (running, engine):
        path = "/v1/responses/resp_1?model=default%2Ftiny&include=a%26b&ec_transfer_params=x&empty="
        answer = (await send(running.url, get_request(path)))[0]
        assert answer.json == {"path": "/v1/responses/resp_1?model=tiny&include=a%26b&empty="}
        assert (await request(running.url, b"", path="/v1/responses/resp_1/cancel?model=tiny")).status == 200
        assert engine.calls[1].path == "/v1/responses/resp_1/cancel?model=tiny"


@pytest.mark.parametrize("kind", [b"content-type: text/plain\r\n", b"content-type: application/json\r\n", b""])
@pytest.mark.parametrize("length", [b"content-length: 8\r\n", b""])
async def test_no_browser_takes_an_answer_that_is_passed_on_for_a_web_page(kind: bytes, length: bytes) -> None:
    async def script(call: EngineCall) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + kind + length + b"\r\n<script>")
        raise HangUp

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        (answer,) = await send(running.url, post_request({"model": "tiny"}, path="/v1/audio/speech"))
        assert answer.fields["x-content-type-options"] == "nosniff"


async def test_clients_reach_nothing_else_of_an_account() -> None:
    async with gateway_of(_echo, requests=OPENED) as (running, engine):
        for path in ("/v1/files/file-1", "/v1/filesystem", "/v1/batches", "/v1/responses2", "/v1/organization"):
            for data in (get_request(f"{path}?model=tiny"), post_request({"model": "tiny"}, path=path)):
                (answer,) = await send(running.url, data)
                assert (answer.status, answer.error["code"]) == (404, "unknown_url"), path
                assert "engine.allowedPaths" in answer.error["message"]
        assert engine.calls == []
        (answer,) = await send(running.url, post_request({"model": "tiny"}, path="/v1/files"))
        assert answer.status == 200


def test_each_engine_type_has_the_paths_of_its_api() -> None:
    sglang, vllm = open_paths(frozenset({"sglang"})), open_paths(frozenset({"vllm"}))
    assert {"/v1/responses", "/v1/rerank", "/v1/audio/transcriptions", "/v1/moderations"} <= sglang < vllm
    assert "/v1/pooling" in vllm - sglang
    assert open_paths(frozenset()) == open_paths(frozenset({"external"})) == sglang | vllm


@pytest.mark.parametrize(("path", "kind"), [("/v1/responses", "text/event-stream"), ("/v1/audio/speech", "audio/mpeg")])
async def test_an_answer_in_another_language_is_passed_on_piece_by_piece(path: str, kind: str) -> None:
    go_on = asyncio.Event()
    first = b'event: response.output_text.delta\ndata: {"a":1}\n\n'
    last = b"event: response.completed\ndata: {}\n\n"

    async def script(call: EngineCall) -> None:
        await call.start_stream(kind)
        await call.chunk(first)
        await go_on.wait()
        await call.chunk(last)
        await call.chunk(b"")

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request({"model": "tiny", "stream": True}, path=path))
        head = await connection.reader.readuntil(first)
        assert f"content-type: {kind}".encode() in head
        go_on.set()
        assert (await connection.reader.read()).endswith(last + b"\r\n0\r\n\r\n")
        await connection.close()


async def test_a_passed_on_stream_that_breaks_does_not_look_complete() -> None:
    script = streams(b"data: 1\n\n", end=reset)
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request({"model": "tiny"}, path="/v1/audio/speech"))
        try:
            rest = await connection.reader.read()
        except ConnectionError:
            rest = b""
        assert not rest.endswith(b"0\r\n\r\n")
        await connection.close()


async def test_bytes_and_their_kind_come_back_as_the_engine_sent_them() -> None:
    async with gateway_of(responds(b"\x00\xff" * 10, kind="audio/wav")) as (running, *_):
        answer = await request(running.url, {"model": "tiny", "input": "x"}, path="/v1/audio/speech")
        assert (answer.status, answer.body) == (200, b"\x00\xff" * 10)
        assert answer.fields["content-type"] == "audio/wav"


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed"])
async def test_what_the_engine_does_not_serve_is_an_openai_error(status: str) -> None:
    async with gateway_of(responds({"detail": status[4:]}, status)) as (running, engine):
        for path in ("/v1/rerank", "/v1/pooling"):
            answer = await request(running.url, {"model": "tiny"}, path=path)
            assert (answer.status, answer.error["code"]) == (int(status[:3]), "unknown_url")
            assert answer.fields["content-type"] == "application/json"
        assert len(engine.calls) == 2


async def test_an_error_of_another_form_is_the_clients() -> None:
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}

    async with gateway_of(responds(error, "400 Bad Request")) as (running, *_):
        answer = await request(running.url, {"model": "tiny", "messages": []}, path="/v1/messages")
        assert (answer.status, answer.json) == (400, error)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (post_request({"input": "x"}, path="/v1/moderations"), 404, "unknown_url"),
        (post_request({"model": "nope"}, path="/v1/moderations"), 404, "model_not_found"),
        (post_request({"model": 1}, path="/v1/moderations"), 400, "invalid_type"),
        (post_request(b"[]", path="/v1/batches"), 400, "invalid_type"),
        (post_request(b"{", path="/v1/batches"), 400, "invalid_json"),
        (post_request(b"", path="/v1/batches"), 404, "unknown_url"),
        (post_request(b"--x", path="/v1/files", more="content-type: multipart/form-data; boundary=x\r\n"), 400, None),
        (post_request({"model": "tiny", "n": 10**9}, path="/v1/chat/completions/batch"), 400, "out_of_range"),
        (
            post_request({"model": "tiny", "lora_name": "x", "lora_path": "/"}, path="/v1/load_lora_adapter"),
            404,
            "unknown_url",
        ),
        (post_request({"model": "tiny"}, path="/v1/unload_lora_adapter"), 404, "unknown_url"),
        (post_request({"model": "tiny"}, path="/v1/a/../../sleep"), 404, "unknown_url"),
        (post_request({"model": "tiny"}, path="/v1/a%0d%0ax:y"), 404, "unknown_url"),
        (post_request({"model": "tiny"}, path="/v1/%2e%2e/sleep"), 404, "unknown_url"),
        (post_request({"model": "tiny"}, path="/v1//sleep"), 404, "unknown_url"),
        (post_request({"model": "tiny"}, path="/v1/chat/completions/"), 400, "missing_field"),
        (post_request({"model": "tiny"}, path="/sleep"), 404, "unknown_url"),
        (post_request({"model": "tiny"}, path="/inference/v1/generate"), 404, "unknown_url"),
        (get_request("/v1/files"), 404, "unknown_url"),
        (get_request("/v1/files?model=nope"), 404, "model_not_found"),
        (get_request("/v1/files?model=tiny"), 404, "unknown_url"),
        (get_request("/v1/responses?model=tiny"), 405, "method_not_allowed"),
        (get_request("/v1/responses/resp_1"), 404, "response_not_found"),
        (get_request("/v1/responses/resp_1?model=tiny"), 404, "unknown_url"),
        (post_request({"model": "tiny"}, path="/v1/files"), 404, "unknown_url"),
        (post_request({"model": "tiny"}, path="/v1/fine_tuning/jobs"), 404, "unknown_url"),
        (get_request("/v1/organization/admin_api_keys?model=tiny"), 404, "unknown_url"),
        (get_request("/v1/files?" + "&".join("a=1" for _ in range(99))), 400, "invalid_request"),
        (get_request("/v1/files?model=tiny", method="DELETE"), 405, "method_not_allowed"),
        (get_request("/v1/rerank?model=tiny"), 405, "method_not_allowed"),
        (get_request("/v1/models/nope"), 404, "model_not_found"),
    ],
)
async def test_what_cannot_be_passed_on_is_refused_and_no_engine_hears_of_it(
    data: bytes, status: int, code: str | None
) -> None:
    async with scripted_engine(_echo) as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = (await send(running.url, data))[0]
        assert answer.status == status
        assert code in (None, answer.error["code"])
        assert answer.error["type"] == "invalid_request_error"
        assert engine.calls == []


async def test_a_model_is_retrieved_by_every_name_it_has() -> None:
    other = Model("other", "org/big model")
    fleet = fleet_of([])
    fleet = Fleet(2, 2, {MODEL_KEY: fleet.models[MODEL_KEY], other.key: other}, {MODEL_KEY: (), other.key: ()})
    async with running_gateway(fleet) as running:
        for name in ("tiny", "default/tiny", "other/org/big%20model", "org/big%20model"):
            answer = (await send(running.url, get_request(f"/v1/models/{name}")))[0]
            assert (answer.status, answer.json["object"]) == (200, "model")
        listed = (await send(running.url, get_request("/v1/models")))[0].json
        assert [model["id"] for model in listed["data"]] == ["tiny", "org/big model"]


def test_only_plain_paths_below_v1_are_passed() -> None:
    for path in (
        "/v1",
        "/v1/",
        "/v1/a/",
        "/v1/a b",
        "/v1/a?b",
        "/v1/é",
        "/v1/.",
        "/v1/../x",
        "/v2/a",
        "v1/a",
        "/v1/a\r\n",
    ):
        assert not is_passthrough_path(path), path
    for path in ("/v1/a", "/v1/a/b.c", "/v1/.a", "/v1/a..b", "/v1/files/file-1:x@y~"):
        assert is_passthrough_path(path), path


async def test_bodies_that_differ_are_spread() -> None:
    async with gateway_of(_echo, _echo) as (running, first, second):
        for number in range(64):
            body = json.dumps({"model": "tiny", "query": f"{number}" * 300}).encode()
            assert (await request(running.url, body, path="/v1/rerank")).status == 200
        assert first.calls
        assert second.calls


@pytest.mark.parametrize("path", ["/v1/v1/chat/completions", "/v1/v1/messages", "/v1/v1/models", "/v1/v1"])
async def test_a_base_url_with_the_version_twice_is_named(path: str) -> None:
    """Anthropic's SDK adds `/v1` to its base URL; that of OpenAI does not."""
    async with running_gateway(fleet_of([])) as running:
        for data in (post_request({"model": "tiny", "messages": []}, path=path), get_request(path)):
            (answer,) = await send(running.url, data)
            assert (answer.status, answer.error["code"]) == (404, "unknown_url")
            assert "/v1 stands twice in this path" in answer.error["message"]
            assert "base URL" in answer.error["message"]
