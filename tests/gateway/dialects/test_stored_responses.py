"""Stored responses belong to the tenant that made them, and to the instance that holds them."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from fairlead.fleet.model import Fleet, RequestPolicy
from fairlead.limits import Limits
from fairlead.tenants.model import Tenant
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import UnknownResponse
from fairlead_gateway.openai.response_ids import ResponseIdRewriter, ResponseIds
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.counters import UNFINISHED
from fairlead_testing.engines.scripted import EngineCall, responds, scripted_engine
from fairlead_testing.gateway.running_gateway import GOOD, MODEL_KEY, fleet_of, gateway_before, running_gateway
from fairlead_testing.gateway.tenant_keys import keys_of
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, send
from fairlead_testing.waiting import wait_until

ACME = CallerKey("acme")
FLEET = fleet_of(["http://a:1", "http://b:1"])
STORING = RequestPolicy(allowed_fields=frozenset({"store"}))
FIRST, SECOND = (instance.id for instance in FLEET.instances[MODEL_KEY])


def test_every_gateway_with_the_secret_finds_the_holder() -> None:
    written = ResponseIds(b"secret").client_id("resp_1", SECOND, ACME)
    found = ResponseIds(b"secret").find(written, ACME, FLEET)
    assert (found.model_key, found.instance_id, found.engine_id) == (MODEL_KEY, SECOND, "resp_1")
    assert found.client_id == written


def test_no_one_else_finds_it() -> None:
    ids = ResponseIds(b"secret")
    written = ids.client_id("resp_1", FIRST, ACME)
    gone = replace(FLEET, instances={MODEL_KEY: FLEET.instances[MODEL_KEY][1:]})
    changed = written[:-1] + ("A" if written[-1] != "A" else "B")
    attempts: list[tuple[ResponseIds, str, str, Fleet]] = [
        (ids, written, "other", FLEET),
        (ids, written, "", FLEET),
        (ResponseIds(b"another"), written, "acme", FLEET),
        (ids, "resp_2" + written[6:], "acme", FLEET),
        (ids, changed, "acme", FLEET),
        (ids, "resp_1", "acme", FLEET),
        (ids, "x" * 400, "acme", FLEET),
        (ids, "", "acme", FLEET),
        (ids, written, "acme", gone),
        (ids, written, "acme", Fleet()),
    ]
    for reader, name, tenant, fleet in attempts:
        with pytest.raises(UnknownResponse):
            reader.find(name, CallerKey(tenant), fleet)


def test_ids_are_replaced_where_they_are_values() -> None:
    ids = ResponseIds(b"secret")
    rewriter = ResponseIdRewriter(ids, FIRST, ACME, None)
    body = b'{"id":"resp_1","output":[{"id":"msg_1","text":"\\"id\\":\\"resp_9\\""}],"previous_response_id":null}'
    client_id = ids.client_id("resp_1", FIRST, ACME).encode()
    assert rewriter.rewrite(body) == body.replace(b'"resp_1"', b'"%b"' % client_id)
    later = b'event: response.completed\ndata: {"response":{"id":"resp_1","metadata":{"id":"resp_7"}}}\n\n'
    assert rewriter.rewrite_events([later]) == [later.replace(b'"resp_1"', b'"%b"' % client_id)]


class _Store:
    """Two engines that store responses as vLLM does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[str, str, Any]] = []
        self.held: dict[str, dict[str, Any]] = {}

    async def __call__(self, call: EngineCall) -> None:
        body = call.json if call.body else None
        method = call.head.split(b" ", 1)[0].decode()
        self.calls.append((method, call.path, body))
        if call.path == "/v1/responses" and isinstance(body, dict):
            previous = body.get("previous_response_id")
            response = {
                "id": f"resp_{self.name}{len(self.held)}",
                "previous_response_id": previous,
                "status": "completed",
            }
            if previous is not None and previous not in self.held:
                await call.respond({"error": {"message": f"Response with id '{previous}' not found."}}, "404 Not Found")
                return
            self.held[response["id"]] = response
            await call.respond(response)
            return
        name = call.path.removeprefix("/v1/responses/").partition("/")[0]
        if name in self.held and method != "DELETE":
            await call.respond(self.held[name])
        else:
            await call.respond({"detail": "Not Found"}, "404 Not Found")


@pytest.mark.simulated
@pytest.mark.parametrize("models", [None, frozenset({"default/tiny"}), frozenset({"default/*"})])
async def test_a_response_is_read_and_continued_where_it_is_held(models: frozenset[str] | None) -> None:
    stores = [_Store("a"), _Store("b")]
    keys = keys_of(Tenant("acme", models=models), Tenant("other"))
    async with (
        scripted_engine(stores[0]) as one,
        scripted_engine(stores[1]) as two,
        running_gateway(fleet_of([one.url, two.url], requests=STORING), api_keys=keys) as running,
    ):

        async def answer_to(data: bytes) -> RawResponse:
            return (await send(running.url, data))[0]

        def create(tenant: str, **fields: object) -> bytes:
            more = f"authorization: Bearer {tenant}\r\n"
            return post_request({"model": "tiny", "input": "hi", **fields}, path="/v1/responses", more=more)

        def read(tenant: str, name: str, method: str = "GET") -> bytes:
            return get_request(f"/v1/responses/{name}", method=method, more=f"authorization: Bearer {tenant}\r\n")

        for number in range(12):
            answered = await answer_to(create("acme", input=f"{number} " * 300))
            made = answered.json
            assert answered.status == 200, made
            name = made["id"]
            holder = next(store for store in stores if any(name.startswith(held) for held in store.held))
            got = await answer_to(read("acme", name))
            assert (got.status, got.json["id"]) == (200, name)
            continued = (await answer_to(create("acme", previous_response_id=name))).json
            assert continued["previous_response_id"] == name
            assert holder.calls[-1][2]["previous_response_id"] in holder.held
            for refused in (read("other", name), create("other", previous_response_id=name), read("acme", name[:-1])):
                answer = await answer_to(refused)
                assert (answer.status, answer.error["code"]) == (404, "response_not_found")
        gone = await answer_to(read("acme", name, "DELETE"))
        assert (gone.status, gone.error["code"]) == (404, "unknown_url")
        assert holder.calls[-1][0] == "DELETE"
        assert json.dumps([call for store in stores for call in store.calls]).count(name) == 0


@pytest.mark.simulated
@pytest.mark.parametrize(("engine", "status"), [("trtllm", 400), ("llamacpp", 400), ("vllm", 200)])
async def test_a_background_is_refused_where_no_engine_has_one(engine: str, status: int) -> None:
    policy = RequestPolicy(engines=frozenset({engine}), allowed_fields=frozenset({"background"}))
    body = {"model": "tiny", "input": "hi", "background": True}
    async with (
        scripted_engine(responds({"id": "resp_1", "status": "queued"})) as scripted,
        running_gateway(fleet_of([scripted.url], requests=policy)) as running,
    ):
        (answer,) = await send(running.url, post_request(body, path="/v1/responses"))
        assert answer.status == status
        assert status == 200 or answer.error["param"] == "background"


BOTH = RequestPolicy(allowed_fields=frozenset({"background", "store"}))


@pytest.mark.simulated
@pytest.mark.parametrize("engine", ["vllm", "sglang", "sim", "custom"])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/other"])
async def test_work_that_runs_on_is_refused_unless_the_model_allows_it(engine: str, path: str) -> None:
    rules: dict[str, Any] = {"engines": frozenset({engine}), "allowed_paths": frozenset({path})}
    async with (
        scripted_engine(responds({"id": "resp_1", "status": "completed"})) as scripted,
        running_gateway(fleet_of([scripted.url], requests=RequestPolicy(**rules))) as running,
    ):
        for value, status in ((True, 400), (False, 200), (None, 200)):
            body = {"model": "tiny", "input": "hi", "background": value}
            (answer,) = await send(running.url, post_request(body, path=path))
            assert answer.status == status
            if status == 400:
                assert (answer.error["code"], answer.error["param"]) == ("field_not_allowed", "background")
                assert "engine.allowedFields: [background]" in answer.error["message"]


def _spellings() -> list[tuple[str, bool]]:
    """Returns members that say whether to store an answer, and whether that is to store none."""
    escaped = '"\\u0073tore"'
    return [
        ("", False),
        ('"store":true,', False),
        ('"store" : null ,', False),
        (f"{escaped}:true,", False),
        ('"store":false,"store":true,', False),
        ('"metadata":{"store":"false"},', False),
        ('"store":false,', True),
        (f"{escaped}: false,", True),
    ]


@pytest.mark.simulated
@pytest.mark.parametrize("is_allowed", [False, True])
@pytest.mark.parametrize("filler", [0, 300_000], ids=["small", "large"])
async def test_no_answer_is_stored_unless_the_model_allows_it(is_allowed: bool, filler: int) -> None:
    policy = STORING if is_allowed else RequestPolicy()
    async with (
        scripted_engine(responds({"id": "resp_1", "status": "completed"})) as scripted,
        running_gateway(fleet_of([scripted.url], requests=policy)) as running,
    ):
        for member, says_no in _spellings():
            body = f'{{{member}"model":"tiny","input":"{"x" * (filler + 2)}"}}'.encode()
            (answer,) = await send(running.url, post_request(body, path="/v1/responses"))
            assert answer.status == 200
            sent = scripted.calls[-1]
            if is_allowed or says_no:
                assert sent.body == body
                assert "x-fairlead-stored" not in answer.fields
            else:
                pairs: list[tuple[str, Any]] = json.loads(sent.body, object_pairs_hook=list)
                assert {value for name, value in pairs if name == "store"} == {False}
                assert answer.fields["x-fairlead-stored"] == "false"


class _BackgroundEngine:
    """An engine that answers before its work is done.

    states: what it says of the work at each poll; the last one stays.
    """

    def __init__(self, *states: str, usage: bool = True) -> None:
        self.states = list(states)
        self.usage = usage
        self.calls: list[str] = []

    async def __call__(self, call: EngineCall) -> None:
        self.calls.append(call.head.split(b" HTTP", 1)[0].decode())
        state = "queued" if call.path == "/v1/responses" else self.states[0]
        if call.path != "/v1/responses" and len(self.states) > 1:
            del self.states[0]
        if state == "lost":
            await call.respond({"detail": "Not Found"}, "404 Not Found")
            return
        usage = {"input_tokens": 1_000, "output_tokens": 500} if self.usage and state == "completed" else None
        await call.respond({"id": "resp_1", "status": state, "usage": usage})


BACKGROUND = {"model": "tiny", "input": "hi", "background": True, "max_output_tokens": 3_000}


@pytest.mark.simulated
@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "incomplete"])
async def test_work_that_runs_on_keeps_its_place_until_its_end_and_is_booked_then(end: str, leaves: bool) -> None:
    engine = _BackgroundEngine("queued", *["in_progress"] * 5, end)
    outcomes: list[RequestOutcome] = []
    async with scripted_engine(engine) as scripted, running_gateway(fleet_of([scripted.url], requests=BOTH)) as running:
        running.gateway._recorder._on_finished = (lambda context: outcomes.append(context.result),)
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(BACKGROUND, path="/v1/responses"))
        assert (await connection.read_response()).json["status"] == "queued"
        if leaves:
            await connection.close()
        await wait_until(lambda: len(engine.calls) >= 4)
        assert running.gateway.inflight_count() == 1
        assert [load.inflight for load in running.loads().values()] == [1]
        assert outcomes == []
        await wait_until(lambda: running.gateway.inflight_count() == 0)
        await connection.close()
    assert engine.calls[1:] == ["GET /v1/responses/resp_1"] * 7
    if end == "completed":
        assert (outcomes[0].prompt_tokens, outcomes[0].output_tokens) == (1_000, 500)
    else:
        assert (outcomes[0].output_tokens, outcomes[0].estimated_tokens) == (None, 3_000), "it says no amount"


@pytest.mark.simulated
@pytest.mark.parametrize("last", ["lost", "in_progress"])
async def test_work_whose_end_is_not_seen_is_cancelled_and_counts_as_the_most(last: str) -> None:
    engine = _BackgroundEngine("in_progress", last)
    outcomes: list[RequestOutcome] = []
    async with scripted_engine(engine) as scripted, running_gateway(fleet_of([scripted.url], requests=BOTH)) as running:
        running.gateway._recorder._on_finished = (lambda context: outcomes.append(context.result),)
        (answer,) = await send(running.url, post_request(BACKGROUND, path="/v1/responses"))
        assert answer.status == 200
        await asyncio.sleep(Limits().response_seconds)
        assert running.gateway.inflight_count() == 0
        assert running.gateway.telemetry.models[MODEL_KEY].ints[UNFINISHED] == 1
    assert engine.calls[-1] == "POST /v1/responses/resp_1/cancel"
    assert (outcomes[0].error, outcomes[0].estimated_tokens) == (None, 3_000)
    assert not outcomes[0].is_refunded


@pytest.mark.simulated
@pytest.mark.parametrize(
    ("path", "answer", "status"),
    [
        ("/v1/responses", {"id": "resp_1", "status": "queued"}, "200 OK"),
        ("/v1/responses", {"id": "resp_1", "status": "in_progress", "usage": None}, "200 OK"),
        ("/v1/responses", {"id": "resp_1"}, "202 Accepted"),
        ("/v1/chat/completions", {"id": "job-1", "status": "queued"}, "200 OK"),
        ("/v1/chat/completions", {"id": "job-1", "usage": {"completion_tokens": 0}}, "202 Accepted"),
    ],
)
async def test_answer_that_means_later_counts_as_an_unknown_amount(
    path: str, answer: dict[str, Any], status: str
) -> None:
    async with gateway_before([responds(answer, status)]) as running:
        body = {"model": "tiny", "input": "hi"} if path == "/v1/responses" else GOOD
        (got,) = await send(running.url, post_request(body, path=path))
        assert got.status == int(status[:3])
        assert running.gateway.telemetry.models[MODEL_KEY].ints[UNFINISHED] == 1


@pytest.mark.simulated
@pytest.mark.parametrize("body", [{"detail": "Not Found"}, {"error": {"code": 404, "message": "File Not Found"}}])
async def test_tokens_that_no_engine_counts_are_an_error_that_says_so(body: dict[str, Any]) -> None:
    async with gateway_before([responds(body, "404 Not Found")]) as running:
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        (answer,) = await send(running.url, post_request(asked, path="/v1/messages/count_tokens"))
        assert (answer.status, answer.json["type"]) == (501, "error")
        assert answer.error["message"] == "the model's engine does not count tokens"
