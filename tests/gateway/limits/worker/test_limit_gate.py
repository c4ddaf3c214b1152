"""Requests reserve of their tenant's limits, and settle with what they used on every path."""

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from fairlead.fleet.model import TokenPrice
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.limits.exchange import CONTENDED, GRANTED, NOT_YET, Exchange, ExchangeReply
from fairlead_gateway.limits.supervisor.quota_service import MemoryLimitStore, QuotaService
from fairlead_gateway.limits.worker import amounts, limit_plan
from fairlead_gateway.limits.worker.limit_gate import LimitGate
from fairlead_gateway.limits.worker.limit_plan import UNITS, Amounts
from fairlead_gateway.limits.worker.tenant_limits import QuotaLink, TenantLimits, Waiter
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_testing.engines.scripted import EngineCall, HangUp, responds, silent, streams, token, usage
from fairlead_testing.gateway.limited_gateway import LimitedGateway, answer, limited_gateway
from fairlead_testing.simulated.event_loop import running_clock
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

_MESSAGES = [{"role": "user", "content": "hi"}]
_REQUESTS = Limit(LimitUnit.REQUESTS, 3, Window.DAY)
_TOKENS = Limit(LimitUnit.TOKENS, 100_000, Window.DAY)
_COST = Limit(LimitUnit.COST, 1_000_000, Window.MONTH)
_BY_ENFORCEMENT = {"strict": Enforcement.STRICT, "estimated": Enforcement.ESTIMATED}
_SLOW = dataclasses.replace(Limits(), quota_report_seconds=3_600.0, quota_renew_seconds=3_600.0)
_QUICK = dataclasses.replace(Limits(), quota_report_seconds=0.02, quota_renew_seconds=0.05)


class _RecordingStore(MemoryLimitStore):
    """A store in memory. `spent`: the use of each limit in the last report."""

    def __init__(self) -> None:
        super().__init__(running_clock())
        self.spent: dict[str, int] = {}

    async def apply(self, exchanges: Sequence[tuple[str, Exchange]]) -> list[ExchangeReply | None]:
        for _, exchange in exchanges:
            for report in exchange.limits:
                self.spent[report.limit] = sum(row.spent for row in report.own)
        return await super().apply(exchanges)


_answer = responds(answer())


async def test_a_request_beyond_the_limit_gets_429_with_the_headers_of_openai() -> None:
    async with limited_gateway(_answer, [Tenant("acme", limits=(_REQUESTS,))]) as gateway:
        answers = [await gateway.chat("acme") for _ in range(4)]
        assert [reply.status_code for reply in answers] == [200, 200, 200, 429]
        assert [reply.headers["x-ratelimit-remaining-requests"] for reply in answers] == ["2", "1", "0", "0"]
        refused = answers[-1]
        error = refused.json()["error"]
        assert error["code"] == "rate_limit_exceeded"
        assert "3 requests per day of tenant acme" in error["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        assert refused.headers["x-ratelimit-limit-requests"] == "3"


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (Limit(LimitUnit.REQUESTS, 1, Window.MINUTE), None),
        (Limit(LimitUnit.REQUESTS, 1, Window.MONTH), "false"),
        (Limit(LimitUnit.COST, 15_000, Window.MONTH), "false"),
        (Limit(LimitUnit.TOKENS, 2, Window.MINUTE), "false"),
    ],
    ids=["a minute", "a month", "the budget", "more than the whole limit"],
)
async def test_sdks_do_not_send_again_what_is_refused_for_long(limit: Limit, says: str | None) -> None:
    """Some sleep as long as retry-after says, and others ignore a long wait and ask at once."""
    async with limited_gateway(_answer, [Tenant("acme", limits=(limit,))], price=TokenPrice(10, 1, 20)) as gateway:
        answers = [await gateway.chat("acme") for _ in range(20)]
        refused = answers[-1]
        assert refused.status_code == 429
        assert refused.headers.get("x-should-retry") == says


@pytest.mark.parametrize(
    "largest", [Limit(LimitUnit.REQUESTS, 2, Window.DAY), Limit(LimitUnit.REQUESTS, 600, Window.DAY)]
)
async def test_the_headers_of_a_refusal_are_those_of_the_limit_that_refused(largest: Limit) -> None:
    """Answers show the shortest window, of a minute, also if the day's limit is the smaller one."""
    minute = Limit(LimitUnit.REQUESTS, 3, Window.MINUTE)
    async with limited_gateway(_answer, [Tenant("acme", limits=(minute, largest))]) as gateway:
        answers = [await gateway.chat("acme") for _ in range(4)]
        shown = [reply.headers["x-ratelimit-limit-requests"] for reply in answers if reply.status_code == 200]
        assert set(shown) == {"3"}
        refused = answers[-1].headers
        assert refused["x-ratelimit-limit-requests"] == str(min(3, largest.amount))
        assert refused["x-ratelimit-remaining-requests"] == "0"
        assert refused["x-ratelimit-reset-requests"].endswith("s")


@pytest.mark.parametrize(
    ("limit", "used_by_each", "most_unknown"),
    [(Limit(LimitUnit.REQUESTS, 256, Window.DAY), 1, 0), (Limit(LimitUnit.TOKENS, 3 * 12 * 256, Window.DAY), 12, 60)],
    ids=["small", "large"],
)
async def test_use_reaches_the_store_before_any_interval(limit: Limit, used_by_each: int, most_unknown: int) -> None:
    store = _RecordingStore()
    service = QuotaService(store, "gw", clock=running_clock(), limits=_SLOW)
    async with limited_gateway(_answer, [Tenant("acme", limits=(limit,))], _SLOW, service=service) as gateway:
        for count in range(1, 13):
            await gateway.chat("acme")
            await wait_until(lambda: count * used_by_each - store.spent[limit.id] <= most_unknown)  # noqa: B023


async def test_the_decision_log_says_which_limit_refused() -> None:
    limit = dataclasses.replace(_REQUESTS, amount=1)
    async with limited_gateway(_answer, [Tenant("acme", limits=(limit,))]) as gateway:
        await gateway.chat("acme")
        refused = await gateway.chat("acme")
        (logged,) = gateway.running.gateway.decisions.find(refused.headers["x-request-id"])
        assert logged.latest.decision.rule == "limit"
        assert "1 requests per day of tenant acme" in logged.latest.decision.reason
        assert logged.status == 429


async def test_a_request_that_waited_for_a_slice_says_so() -> None:
    async with limited_gateway(_answer, [Tenant("acme", limits=(_REQUESTS,))]) as gateway:
        answered = await gateway.chat("acme")
        (logged,) = gateway.running.gateway.decisions.find(answered.headers["x-fairlead-decision"])
        assert "for a slice of the limit of 3 requests per day of tenant acme" in logged.latest.decision.reason


async def test_tokens_are_settled_with_what_the_engine_reported() -> None:
    async with limited_gateway(_answer, [Tenant("acme", limits=(_TOKENS,))]) as gateway:
        await gateway.chat("acme")
        assert gateway.used("acme", _TOKENS.id) == 12
        assert gateway.busy("acme", _TOKENS.id) == 0


async def test_cached_tokens_cost_less() -> None:
    tenants = [Tenant("acme", limits=(_COST,))]
    async with limited_gateway(
        responds(answer(prompt=100, cached=60, output=10)), tenants, price=TokenPrice(10, 1, 20)
    ) as gateway:
        await gateway.chat("acme", max_tokens=10)
        assert gateway.used("acme", _COST.id) == 40 * 10 + 60 * 1 + 10 * 20


async def test_a_budget_that_is_used_up_is_insufficient_quota() -> None:
    tenants = [Tenant("acme", limits=(dataclasses.replace(_COST, amount=100),))]
    async with limited_gateway(_answer, tenants, price=TokenPrice(10, 1, 20)) as gateway:
        refused = await gateway.chat("acme", max_tokens=10)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "insufficient_quota"
        assert not gateway.calls


async def test_a_soft_budget_refuses_nothing_and_is_counted() -> None:
    soft = dataclasses.replace(_COST, amount=100, is_soft=True)
    tenants = [Tenant("acme", limits=(soft,))]
    async with limited_gateway(_answer, tenants, _QUICK, price=TokenPrice(10, 1, 20)) as gateway:
        answers = [await gateway.chat("acme", max_tokens=10) for _ in range(3)]
        assert [reply.status_code for reply in answers] == [200] * 3
        ledger = gateway.service.ledgers["acme"]
        await wait_until(
            lambda: soft.id in ledger.last_reply and ledger.last_reply[soft.id].used == 3 * (7 * 10 + 5 * 20)
        )


async def test_a_refused_request_counts_as_one_and_has_no_tokens() -> None:
    async with limited_gateway(
        responds({"error": {"message": "no"}}, "400 Bad Request"), [Tenant("acme", limits=(_REQUESTS, _TOKENS))]
    ) as gateway:
        assert (await gateway.chat("acme")).status_code == 400
        assert gateway.used("acme", _REQUESTS.id) == 1
        assert gateway.used("acme", _TOKENS.id) == 0
        assert gateway.busy("acme", _TOKENS.id) == 0


async def test_a_retried_request_is_counted_once() -> None:
    calls = []

    async def script(call: EngineCall) -> None:
        calls.append(call)
        if len(calls) == 1:
            raise HangUp
        await call.respond(answer())

    async with limited_gateway(script, [Tenant("acme", limits=(_REQUESTS, _TOKENS))]) as gateway:
        await gateway.chat("acme")
        await gateway.chat("acme")
        assert gateway.used("acme", _REQUESTS.id) <= 2
        assert gateway.used("acme", _TOKENS.id) == 12 * gateway.used("acme", _REQUESTS.id)
        assert gateway.busy("acme", _REQUESTS.id) == 0


async def test_a_stream_is_settled_at_its_end() -> None:
    script = streams(*[token(text) for text in "abc"], usage(9, 0, 3))
    async with limited_gateway(script, [Tenant("acme", limits=(_TOKENS,))]) as gateway:
        assert (await gateway.chat("acme", stream=True)).headers["x-ratelimit-limit-tokens"] == "100000"
        await wait_until(lambda: gateway.busy("acme", _TOKENS.id) == 0)
        assert gateway.used("acme", _TOKENS.id) == 12


async def test_a_client_that_disconnects_pays_the_prompt_and_the_tokens_until_then() -> None:
    script = streams(token("a"), token("b"), end=silent)

    limits = (Limit(LimitUnit.OUTPUT_TOKENS, 10_000, Window.DAY), Limit(LimitUnit.INPUT_TOKENS, 10_000, Window.DAY))
    async with limited_gateway(script, [Tenant("acme", limits=limits)]) as gateway:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        url = f"{gateway.running.url}/v1/chat/completions"
        async with gateway.client.stream("POST", url, json=body, headers={"authorization": "Bearer acme"}) as got:
            seen = b""
            async for part in got.aiter_bytes():
                seen += part
                if b'"b"' in seen:
                    break
        await wait_until(lambda: gateway.busy("acme", limits[0].id) == 0)
        assert gateway.used("acme", limits[0].id) == 2
        assert gateway.used("acme", limits[1].id) > 0


async def test_concurrency_is_free_again_when_a_request_ends() -> None:
    release = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await release.wait()
        await call.respond(answer())

    async with limited_gateway(script, [Tenant("acme", limits=(Limit(LimitUnit.CONCURRENCY, 1),))]) as gateway:
        first = asyncio.create_task(gateway.chat("acme"))
        await wait_until(lambda: len(gateway.calls) == 1)
        refused = await gateway.chat("acme")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
        release.set()
        assert (await first).status_code == 200
        assert (await gateway.chat("acme")).status_code == 200


async def test_strict_limits_of_tokens_need_max_tokens() -> None:
    tenants = [Tenant("acme", limits=(_TOKENS,), enforcement=Enforcement.STRICT)]
    async with limited_gateway(_answer, tenants) as gateway:
        refused = await gateway.chat("acme")
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "max_tokens"
        assert (await gateway.chat("acme", max_tokens=20)).status_code == 200


@pytest.mark.parametrize("key", ["image_url", "input_audio", "video_url", "image\\u005furl"])
async def test_strict_limits_of_tokens_take_text_only(key: str) -> None:
    tenants = [Tenant(name, limits=(_TOKENS,), enforcement=kind) for name, kind in _BY_ENFORCEMENT.items()]
    part = json.loads(f'{{"type": "text", "{key}": {{"url": "https://example.com/a.png"}}}}')
    async with limited_gateway(_answer, tenants) as gateway:
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": [part]}], "max_tokens": 5})
        body = body.replace('"image_url"', f'"{key}"')
        url = f"{gateway.running.url}/v1/chat/completions"
        headers = {"content-type": "application/json"}
        refused, passed = [
            await gateway.client.post(url, content=body, headers=headers | {"authorization": f"Bearer {name}"})
            for name in _BY_ENFORCEMENT
        ]
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
        assert passed.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 300_000}]}, 200),
        ("/v1/responses", {"input": "x" * 300_000, "max_output_tokens": 9}, 200),
        ("/v1/responses", {"input": [{"type": "input_file"}, "x" * 300_000], "max_output_tokens": 9}, 400),
        ("/v1/responses", {"input": "x" * 300_000, "max_output_tokens": 9, "x": float("inf")}, 400),
        ("/v1/responses", {"input": "x", "max_output_tokens": 9, "x": float("inf")}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ["x" * 300_000, {"image": 1}]}]}, 400),
    ],
)
async def test_strict_limits_have_no_large_body_searched_in_the_worker(
    path: str, body: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """29 MB took half a second of the worker, before any refusal, and up to three times."""
    if len(str(body)) > 300_000:
        monkeypatch.setattr(amounts, "text_bounds", None)
    limits = (Limit(LimitUnit.TOKENS, 10_000_000, Window.DAY),)
    tenants = [Tenant("acme", limits=limits, enforcement=Enforcement.STRICT)]
    async with limited_gateway(_answer, tenants) as gateway:
        url, headers = f"{gateway.running.url}{path}", {"authorization": "Bearer acme"}
        content = json.dumps({"model": "tiny", "max_tokens": 9, **body}).replace("Infinity", "1e400")
        headers["content-type"] = "application/json"
        assert (await gateway.client.post(url, content=content, headers=headers)).status_code == status


async def test_strict_limits_of_requests_take_images() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    tenants = [Tenant("acme", limits=(_REQUESTS,), enforcement=Enforcement.STRICT)]
    async with limited_gateway(_answer, tenants) as gateway:
        assert (await gateway.chat("acme", messages=[{"role": "user", "content": [part]}])).status_code == 200


async def test_strict_limits_count_every_answer_before_it_starts() -> None:
    limit = Limit(LimitUnit.OUTPUT_TOKENS, 100, Window.DAY)
    tenants = [Tenant("acme", limits=(limit,), enforcement=Enforcement.STRICT)]
    async with limited_gateway(_answer, tenants) as gateway:
        assert (await gateway.chat("acme", max_tokens=26, n=4)).status_code == 429
        assert (await gateway.chat("acme", max_tokens=25, n=4)).status_code == 200


async def test_a_tenant_with_limits_of_tokens_may_not_use_paths_without_counts() -> None:
    tenants = [Tenant("acme", limits=(_TOKENS,), may_use_other_paths=False), Tenant("free", limits=(_REQUESTS,))]
    async with limited_gateway(_answer, tenants) as gateway:
        url = f"{gateway.running.url}/v1/audio/speech"
        body = {"model": "tiny", "input": "hi"}
        refused = await gateway.client.post(url, json=body, headers={"authorization": "Bearer acme"})
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "path_not_permitted"
        taken = await gateway.client.post(url, json=body, headers={"authorization": "Bearer free"})
        assert taken.status_code == 200
        assert gateway.used("free", _REQUESTS.id) == 1


@pytest.mark.parametrize("enforcement", Enforcement)
@pytest.mark.parametrize(
    "path", ["/v1/messages/count_tokens", "/v1/messages/count_tokens/", "/tokenize", "/detokenize", "/v1/tokenize"]
)
async def test_tokens_are_counted_for_clients_at_no_cost(path: str, enforcement: Enforcement) -> None:
    limits = (_REQUESTS, Limit(LimitUnit.TOKENS, 10, Window.DAY), Limit(LimitUnit.COST, 90, Window.DAY))
    tenant = Tenant("acme", limits=limits, enforcement=enforcement, may_use_other_paths=False)
    async with limited_gateway(
        responds({"input_tokens": 25, "count": 25, "tokens": []}), [tenant], price=TokenPrice(9, 9, 9)
    ) as gateway:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi " * 50}]}
        url, headers = f"{gateway.running.url}{path}", {"authorization": "Bearer acme"}
        for _ in range(_REQUESTS.amount):
            reply = await gateway.client.post(url, json=body, headers=headers)
            assert reply.status_code == 200, reply.text
        await wait_until(lambda: gateway.used("acme", _REQUESTS.id) == _REQUESTS.amount)
        assert [gateway.used("acme", limit.id) for limit in limits[1:]] == [0, 0]
        assert (await gateway.client.post(url, json=body, headers=headers)).status_code == 429


async def test_other_tenants_and_keys_are_not_limited() -> None:
    tenants = [Tenant("acme", limits=(Limit(LimitUnit.REQUESTS, 1, Window.DAY, key="ci"),)), Tenant("free")]
    async with limited_gateway(_answer, tenants) as gateway:
        for tenant in ("acme", "free"):
            answers = [await gateway.chat(tenant) for _ in range(3)]
            assert [reply.status_code for reply in answers] == [200] * 3
            assert not any(name.startswith("x-ratelimit") for name in answers[0].headers)


@pytest.mark.parametrize("admits", [True, False])
async def test_without_redis_requests_are_refused_or_admitted_as_the_tenant_says(admits: bool) -> None:
    from fairlead.tenants.model import WithoutRedis

    class _Away:
        problem: str | None = "away"

        async def apply(self, exchanges: object) -> list[None]:
            return [None for _ in exchanges]  # type: ignore[attr-defined]

    policy = WithoutRedis.ADMIT if admits else WithoutRedis.REFUSE
    tenants = [Tenant("acme", limits=(_REQUESTS,), without_redis=policy)]
    service = QuotaService(_Away(), "gw", clock=running_clock(), limits=Limits())  # type: ignore[arg-type]
    async with limited_gateway(_answer, tenants, service=service) as gateway:
        answered = await gateway.chat("acme")
        assert answered.status_code == (200 if admits else 503)
        if not admits:
            assert answered.json()["error"]["code"] == "limits_unavailable"


async def test_a_short_absence_of_redis_delays_requests_and_a_long_one_refuses_them() -> None:
    class _Restarted(MemoryLimitStore):
        absent_until = 1.5

        async def apply(self, exchanges: Sequence[tuple[str, Exchange]]) -> list[ExchangeReply | None]:
            is_absent = clock.now() < begun + self.absent_until
            return [None for _ in exchanges] if is_absent else await super().apply(exchanges)

    clock = running_clock()
    begun, store = clock.now(), _Restarted(clock)
    service = QuotaService(store, "gw", clock=clock, limits=Limits())
    async with limited_gateway(_answer, [Tenant("acme", limits=(_REQUESTS,))], service=service) as gateway:
        assert (await gateway.chat("acme")).status_code == 200
        await asyncio.sleep(limit_plan.IDLE_SECONDS + 1.0)  # its slice is given back
        begun, store.absent_until = clock.now(), 60.0
        waited = []
        for _ in range(2):
            sent = clock.now()
            assert (await gateway.chat("acme")).status_code == 503
            waited.append(clock.now() - sent)
    assert waited[0] >= 2.0 > 0.1 > waited[1]


async def test_many_requests_at_once_use_a_limit_up_and_no_more() -> None:
    limit = Limit(LimitUnit.REQUESTS, 50, Window.DAY)
    async with limited_gateway(_answer, [Tenant("acme", limits=(limit,))]) as gateway:
        answers: list[httpx.Response] = await asyncio.gather(*(gateway.chat("acme") for _ in range(80)))
        codes = [reply.status_code for reply in answers]
        assert (codes.count(200), codes.count(429)) == (50, 30)


async def test_slices_are_given_back_when_the_worker_ends() -> None:
    gateway: LimitedGateway
    async with limited_gateway(_answer, [Tenant("acme", limits=(_TOKENS,))], _QUICK) as gateway:
        await gateway.chat("acme", max_tokens=30)
    row = next(row for _, row in gateway.service.ledgers["acme"].rows())
    assert row.granted - row.returned == row.spent == 12


async def test_a_waiting_request_asks_again_however_early_the_timer_fires() -> None:
    """The loop's timer and the clock differ by a millisecond. Here the clock stands still."""

    class Link:
        requests = 0

        def request_slices(self, limits: TenantLimits) -> None:
            self.requests += 1
            gate.serve_waiting(limits)  # the store answers: not yet

    gate: LimitGate
    link, loop = Link(), asyncio.get_running_loop()
    runtime = WorkerRuntime(ManualClock(), Limits(), loop)
    gate = LimitGate(runtime, cast(Any, None), cast(QuotaLink, link), lambda *_: None, 0.001)
    limits = gate.limits_of(Tenant("acme", limits=(_REQUESTS,)))
    plan = limits.plan("prod", "default/tiny")
    (planned,) = plan.limits
    planned.on_status(NOT_YET, 3, 0, 60.0, runtime.now())
    waiter = Waiter(cast(Any, None), plan, Amounts(1, 0, 0, 0, 0), loop.create_future(), planned)
    limits.waiting.append(waiter)
    gate.serve_waiting(limits)
    await wait_until(lambda: link.requests >= 3)
    limits.waiting.clear()


@pytest.mark.parametrize(
    ("status", "answered_at", "code", "retry_after"),
    [
        (GRANTED, 11.0, "rate_limit_exceeded", "1"),
        (GRANTED, 9.0, "limits_unavailable", "1"),
        (CONTENDED, 11.0, "rate_limit_exceeded", "48"),
        (NOT_YET, 11.0, "limits_unavailable", "1"),
    ],
)
async def test_a_request_that_waited_too_long_says_for_what(
    status: int, answered_at: float, code: str, retry_after: str
) -> None:
    """It began to wait at second 10. The store answered then, or did not."""
    clock = ManualClock(10.0)
    runtime = WorkerRuntime(clock, Limits(), asyncio.get_running_loop())
    gate = LimitGate(runtime, cast(Any, None), None, lambda *_: None)
    tenant = Tenant("acme", limits=(_REQUESTS,))
    (planned,) = gate.limits_of(tenant).plan("prod", "default/tiny").limits
    planned.on_status(status, 2, 1, 60.0, answered_at)
    clock.advance(2.0)
    context = cast(Any, SimpleNamespace(tenant=tenant))
    waiter = Waiter(
        context,
        gate.limits_of(tenant).plan("prod", "default/tiny"),
        Amounts(1, 0, 0, 0, 0),
        cast(Any, None),
        planned,
    )
    error = gate._late(waiter, 10.0)
    assert (error.code, dict(error.headers)["retry-after"]) == (code, retry_after)
    assert ("Redis does not answer" in str(error)) == (status == GRANTED and answered_at < 10.0)


def test_each_unit_is_its_position_and_has_an_amount_of_its_own() -> None:
    assert [getattr(limit_plan, unit.name) for unit in UNITS] == list(range(len(UNITS)))
    used = Amounts(2, 3, 5, 11, 13)
    assert {unit.value: used.of(position) for position, unit in enumerate(UNITS)} == {
        "requests": 2,
        "inputTokens": 3,
        "outputTokens": 5,
        "tokens": 8,
        "cost": 11,
        "concurrency": 1,
        "bytesInFlight": 13,
    }


@pytest.mark.parametrize(
    ("limit", "returned"),
    [
        (_REQUESTS, 2),
        (dataclasses.replace(_REQUESTS, key="other"), 9),
        (Limit(LimitUnit.TOKENS, 100_000, Window.DAY), 9),
        (Limit(LimitUnit.CONCURRENCY, 1), 9),
    ],
    ids=["requests", "of another key", "tokens", "concurrency"],
)
async def test_each_answer_that_is_returned_counts_as_a_request(limit: Limit, returned: int) -> None:
    async with limited_gateway(_answer, [Tenant("acme", limits=(limit,))]) as gateway:
        url, body = f"{gateway.running.url}/v1/chat/completions", {"model": "tiny", "messages": _MESSAGES}
        headers = {"authorization": "Bearer acme", "idempotency-key": "k-1"}
        answers = [await gateway.client.post(url, json=body, headers=headers) for _ in range(10)]
        assert [reply.status_code for reply in answers] == [200] * (returned + 1) + [429] * (9 - returned)
        assert len(gateway.calls) == 1
        assert {reply.headers["idempotent-replayed"] for reply in answers[1 : returned + 1]} == {"true"}
