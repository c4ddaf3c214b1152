"""Two tenants behind one gateway: what one sent is neither found nor shown for the other."""

import json
from typing import Any

import pytest

from fairlead.fleet.model import RequestPolicy
from fairlead.limits import Limits
from fairlead.tenants.model import CacheSharing, Tenant
from fairlead_testing.engines.disaggregated import DisaggregatedModel, engine_process, engine_processes, make_prompt
from fairlead_testing.engines.scripted import EngineCall, HangUp, scripted_engine, token, usage, well_behaved
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, gateway_of, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawResponse, request

pytestmark = pytest.mark.sockets

PROMPT = "the same words of both " * 200
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
ACME, ZETA = Tenant("acme"), Tenant("zeta")
OPEN = [Tenant(name, cache_sharing=CacheSharing.CLUSTER) for name in ("one", "two")]
DISCREET = Tenant("discreet", shows_placement=False)
PLACEMENT = ("x-fairlead-instance", "x-fairlead-reason", "server-timing", "endpoint-load-metrics")


async def complete(running: RunningGateway, tenant: Tenant, **fields: Any) -> RawResponse:
    return await request(running.url, CHAT | fields, more=authorization(tenant.name))


def cached_tokens(answer: RawResponse) -> int:
    tokens: int = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


@pytest.mark.parametrize(("first", "other", "shares"), [(ACME, ZETA, False), (*OPEN, True), (OPEN[0], ACME, False)])
async def test_only_requests_of_one_scope_find_each_others_blocks(first: Tenant, other: Tenant, shares: bool) -> None:
    async with (
        engine_processes(1, "--speed", "50", "--enable-prompt-tokens-details") as engines,
        running_gateway(fleet_of([engine.url for engine in engines]), api_keys=keys_of(first, other)) as running,
    ):
        assert cached_tokens(await complete(running, first)) == 0
        assert cached_tokens(await complete(running, first)) > 100
        assert (cached_tokens(await complete(running, other)) > 100) is shares
        assert cached_tokens(await complete(running, other)) > 100
        assert (cached_tokens(await complete(running, other, cache_salt="apart")) > 100) is False


async def test_affinity_of_a_tenant_is_its_own() -> None:
    async with (
        engine_processes(4, "--speed", "50") as engines,
        running_gateway(fleet_of([engine.url for engine in engines]), api_keys=keys_of(ACME, ZETA)) as running,
    ):
        assert running.gateway.stages.routers.serving.router("default/tiny") is not None
        for tenant in (ACME, ZETA):
            await complete(running, tenant, session_id="chat-1")
            await complete(running, tenant, session_id="chat-1")
            logged = running.gateway.decisions.latest(1)[0]
            assert logged.predicted_cached_tokens, tenant
        predicted = running.gateway.decisions.latest(4)
        assert sum(bool(outcome and outcome.predicted_cached_tokens) for outcome in predicted) == 2


async def stream_with_usage(call: EngineCall) -> None:
    """Answers with headers and counts that show what the engine had cached."""
    more = "endpoint-load-metrics: kv=0.9\r\n"
    if not call.json.get("stream"):
        await call.respond({"object": "chat.completion", "choices": [{"index": 0}], **counted()}, more=more)
        return
    await call.start_stream()
    if call.path == "/v1/messages":
        await call.chunk(b'event: content_block_delta\ndata: {"delta":{"text":"a"}}\n\n')
        end = json.dumps({"delta": {"stop_reason": "end_turn"}, **counted()}).encode()
        await call.chunk(b"event: message_delta\ndata: %b\n\nevent: message_stop\ndata: {}\n\n" % end)
        await call.chunk(b"")
        return
    await call.event(token("a", "stop"))
    await call.event(usage(700, 640, 1))
    await call.finish()


def counted() -> dict[str, Any]:
    return {"usage": usage(700, 640, 1)["usage"]}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tenant", [ACME, DISCREET])
async def test_placement_and_cached_tokens_are_shown_by_policy(tenant: Tenant, stream: bool) -> None:
    async with gateway_of(stream_with_usage, api_keys=keys_of(ACME, DISCREET)) as (running, *_):
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = await complete(running, tenant, **options)
        reply = json.loads(answer.events[-2]) if stream else answer.json
        shown = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert shown == (640 if tenant.shows_placement else None)
        assert reply["usage"]["prompt_tokens"] == 700
        assert ("x-fairlead-instance" in answer.fields) is tenant.shows_placement
        assert answer.fields["x-fairlead-decision"].startswith("req-")
        if not tenant.shows_placement:
            assert not answer.fields.keys() & set(PLACEMENT)
        assert running.gateway.decisions.latest(1)[0].cached_tokens == 640


async def test_resumed_stream_keeps_its_salt_and_its_discretion() -> None:
    async def script(call: EngineCall) -> None:
        if call.json.get("continue_final_message"):
            await stream_with_usage(call)
            return
        await call.start_stream()
        await call.event({"id": "x", "created": 1, "model": "tiny", **token("b")})
        raise HangUp

    options = {"stream": True, "temperature": 0, "stream_options": {"include_usage": True}}
    async with gateway_of(script, script, api_keys=keys_of(DISCREET)) as (running, first, second):
        answer = await complete(running, DISCREET, **options)
        [broken], [resumed] = first.calls, second.calls
        assert broken.json["cache_salt"] == resumed.json["cache_salt"]
        assert json.loads(answer.events[-2])["usage"]["prompt_tokens_details"]["cached_tokens"] is None


async def test_remote_prefill_has_the_salt_of_the_decode() -> None:
    quick = ("--profile", "tiny-cpu", "--speed", "50", "--kv-connector", "nixl")
    body = {"model": "tiny", "prompt": make_prompt(1000), "max_tokens": 4}
    producer, consumer = (engine_process(*quick, "--kv-role", role) for role in ("kv_producer", "kv_consumer"))
    async with producer as prefill, consumer as decode:
        fleet = DisaggregatedModel([prefill], [decode], "nixl").fleet()
        async with running_gateway(fleet, Limits(handoff_min_tokens=64), api_keys=keys_of(ACME, ZETA)) as running:
            outcomes = []
            for tenant in (ACME, ACME, ZETA):
                path, more = "/v1/completions", authorization(tenant.name)
                assert (await request(running.url, body, path=path, more=more)).status == 200
                record = running.gateway.decisions.latest(1)[0].latest.handoff
                outcomes.append(record.outcome)
            assert outcomes[0] == outcomes[2] == "done"  # the second is short: its start is cached


async def test_requests_without_keys_are_not_changed() -> None:
    async with scripted_engine(well_behaved) as engine, running_gateway(fleet_of([engine.url])) as running:
        await request(running.url, CHAT)
        assert engine.calls[0].json == CHAT


CHAT_PATH, MESSAGES_PATH = "/v1/chat/completions", "/v1/messages"


@pytest.mark.parametrize(
    ("engine", "path", "allowed", "is_shown"),
    [
        ("vllm", CHAT_PATH, [], True),
        ("vllm", MESSAGES_PATH, [], True),
        ("sglang", CHAT_PATH, [], True),
        ("sglang", MESSAGES_PATH, [], False),
        ("llamacpp", CHAT_PATH, [], False),
        ("trtllm", CHAT_PATH, [], False),
        ("custom", CHAT_PATH, [], False),
        ("custom", CHAT_PATH, ["cache_salt"], True),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_counts_of_a_cache_that_all_share_are_not_shown(
    engine: str, path: str, allowed: list[str], is_shown: bool, stream: bool
) -> None:
    """An engine without a salt finds the prompts of other tenants."""
    policy = RequestPolicy(engines=frozenset({engine}), allowed_fields=frozenset(allowed))
    async with scripted_engine(stream_with_usage) as scripted:
        fleet = fleet_of([scripted.url], requests=policy)
        async with running_gateway(fleet, api_keys=keys_of(ACME)) as running:
            fields = {"stream": stream, "stream_options": {"include_usage": True}} if stream else {}
            answer = await request(running.url, CHAT | fields, path=path, more=authorization("acme"))
            assert answer.status == 200
            assert (b'"cached_tokens": null' in answer.body or b'"cached_tokens":null' in answer.body) is not is_shown
            assert (b"640" in answer.body) is is_shown
