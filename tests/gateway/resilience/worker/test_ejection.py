"""Failing engines are ejected and come back; full ones are not, and at most half are."""

import signal
from collections import Counter
from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_gateway.supervisor.management.serializers import fleet_out
from fairlead_gateway.supervisor.management.view import GatewayStatus
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_gateway.upstream.connection import activity_key
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.engines.scripted import (
    EngineCall,
    Script,
    hang_up,
    responds,
    scripted_engine,
    silent_after_token,
    streams,
    token,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import (
    MODEL_KEY,
    RunningGateway,
    fleet_of,
    gateway_before,
    gateway_of,
    running_gateway,
)
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = GOOD | {"stream": True, "max_tokens": 20}
LONG = Limits(retry_share=1.0, ejection_seconds=600.0)
SOON = Limits(ejection_seconds=0.05, warm_up_seconds=0.05)


def chat(number: int) -> dict[str, object]:
    return {**GOOD, "messages": [{"role": "user", "content": f"{number} " * 500}]}


def health(running: RunningGateway, instance: str) -> HealthState:
    return running.gateway.stages.failures.describe(instance)[0]


answers_500 = responds({"error": {"message": "broken", "code": 500}}, "500 Internal Server Error")
full = responds({"error": {"message": "full", "code": 503}}, "503 Service Unavailable")


breaks_streams = streams(token("a"), end=hang_up)


async def nonsense(call: EngineCall) -> None:
    await call.send(b"\x00\x01 this is not HTTP\r\n\r\n")


@pytest.mark.parametrize("fault", [answers_500, hang_up, breaks_streams, nonsense])
async def test_an_engine_that_fails_sits_out_and_every_place_says_why(fault: Script) -> None:
    async with gateway_of(fault, well_behaved, limits=LONG) as (running, bad, _good):
        number = 0
        while health(running, "e-0/0/0") is HealthState.HEALTHY:
            await request(running.url, chat(number) | {"stream": fault is breaks_streams})
            number += 1
            assert number < 100
        met = len(bad.calls)
        for more in range(20):
            answer = await request(running.url, chat(1_000 + more))
            assert (answer.status, answer.fields["x-fairlead-instance"]) == (200, "e-1/1/0")
        assert len(bad.calls) == met
        decision = running.gateway.decisions.latest(1)[0].records[0].decision
        (why,) = [candidate.why for candidate in decision.rejected if candidate.id == "e-0/0/0"]
        assert why.startswith("ejected ")
        stack, now = running.gateway.stages, running.gateway.runtime.now()
        lag = running.gateway.loop_lag
        status = GatewayStatus(True, [], running.loads(), stack.failures.describe, lag)
        shown = fleet_out(stack.routers.fleet, status, now)
        assert [instance.standing for instance in shown.models[0].instances] == ["Ejected", "Healthy"]
        text = running.gateway.telemetry.render(stack.routers.fleet, running.loads(), now).decode()
        assert 'fairlead_gateway_instance_ejections_total{model="default/tiny",instance="e-0/0/0"} 1' in text


@pytest.mark.parametrize("load", [full, "leave"])
async def test_load_and_clients_that_leave_eject_nobody(load: Script | str) -> None:
    script = silent_after_token if load == "leave" else full
    async with gateway_of(script, script, limits=LONG) as (running, *_):
        for number in range(20):
            if load == "leave":
                connection = await RawConnection.connect(running.url)
                await connection.send(post_request(chat(number) | {"stream": True}))
                await connection.reader.readuntil(b'"a"')
                await connection.close()
            else:
                assert (await request(running.url, chat(number))).status == 503
        await wait_until(lambda: not running.gateway.inflight_count())
        assert {health(running, instance) for instance in ("e-0/0/0", "e-1/1/0")} == {HealthState.HEALTHY}


async def test_a_request_that_every_engine_fails_ejects_none_of_them() -> None:
    async def picky(call: EngineCall) -> None:
        await (answers_500 if b"poison" in call.body else well_behaved)(call)

    poison = GOOD | {"messages": [{"role": "user", "content": "poison"}]}
    async with gateway_of(picky, picky, limits=LONG) as (running, *_):
        for _ in range(10):
            assert (await request(running.url, poison)).status == 502
            assert {health(running, instance) for instance in ("e-0/0/0", "e-1/1/0")} == {HealthState.HEALTHY}


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_poison_requests_of_one_caller_eject_no_engine_without_a_retry_left(varies: bool, stream: bool) -> None:
    async def picky(call: EngineCall) -> None:
        await (answers_500 if b"poison" in call.body else well_behaved)(call)

    async with gateway_before([picky] * 6) as running:
        for number in range(60):
            text = f"poison {number} " * 300 if varies else "poison"
            poison = GOOD | {"messages": [{"role": "user", "content": text}], "stream": stream}
            assert (await request(running.url, poison)).status == 502
        assert {health(running, f"e-{n}/{n}/0") for n in range(6)} == {HealthState.HEALTHY}


async def test_poison_stream_of_one_caller_ejects_no_engine() -> None:
    async def picky(call: EngineCall) -> None:
        await (breaks_streams if b"poison" in call.body else well_behaved)(call)

    async with gateway_before([picky] * 6, Limits(quarantine_seconds=0.0)) as running:
        poison = STREAM | {"messages": [{"role": "user", "content": "poison"}], "max_tokens": 7}
        for _ in range(20):
            await request(running.url, poison)
        assert {health(running, f"e-{n}/{n}/0") for n in range(6)} == {HealthState.HEALTHY}


async def test_half_a_fleet_that_is_gone_sits_out_and_the_other_half_serves_everything() -> None:
    async with scripted_engine() as three, scripted_engine() as four:
        async with scripted_engine() as first, scripted_engine() as second:
            gone = [first.url, second.url]
        async with running_gateway(fleet_of([*gone, three.url, four.url])) as running:
            for number in range(60):
                assert (await request(running.url, chat(number))).status == 200
            states = [health(running, f"e-{n}/{n}/0") for n in range(4)]
            assert Counter(states[2:]) == {HealthState.HEALTHY: 2}
            assert HealthState.HEALTHY not in states[:2]


async def test_an_engine_that_is_well_again_is_probed_and_gets_its_share_back() -> None:
    ill = True

    async def script(call: EngineCall) -> None:
        await (hang_up if ill else well_behaved)(call)

    async with gateway_of(script, well_behaved, limits=SOON) as (running, *_):
        number = 0

        async def is_in_state(state: HealthState) -> bool:
            nonlocal number
            number += 1
            assert (await request(running.url, chat(number))).status == 200
            return health(running, "e-0/0/0") is state

        await wait_until(lambda: is_in_state(HealthState.EJECTED))
        ill = False
        await wait_until(lambda: is_in_state(HealthState.HEALTHY))

        async def served() -> bool:
            return (await request(running.url, chat(number))).fields["x-fairlead-instance"] == "e-0/0/0" or (
                await is_in_state(HealthState.EJECTED)
            )

        await wait_until(served)
        assert health(running, "e-0/0/0") is HealthState.HEALTHY


@pytest.mark.sockets
async def test_hung_engine_is_found_by_its_silence_and_its_requests_are_retried() -> None:
    limits = Limits(
        first_token_min_seconds=2.0,
        first_token_factor=1.0,
        breaker_consecutive_faults=1,
        breaker_fault_sources=1,
        ejection_seconds=600.0,
    )
    async with (
        engine_processes(2, "--speed", "50") as engines,
        running_gateway(fleet_of([engine.url for engine in engines]), limits) as running,
    ):
        used = (await request(running.url, STREAM)).fields["x-fairlead-instance"]
        engines[int(used[2])].send(signal.SIGSTOP)
        number = 0
        while health(running, used) is HealthState.HEALTHY:
            body = STREAM | {"messages": chat(number)["messages"]}
            answer = await request(running.url, body)
            assert answer.events[-1] == "[DONE]"
            number += 1
            assert number < 100
        retries = running.gateway.telemetry.models[MODEL_KEY].retries_by_reason
        assert retries == {"timeout": 1}
        for more in range(10):
            answer = await request(running.url, STREAM | {"messages": chat(1_000 + more)["messages"]})
            assert answer.fields["x-fairlead-instance"] != used
        assert retries == {"timeout": 1}


async def test_an_engine_that_speaks_to_others_is_slow_and_not_hung() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        if b"slow" in call.body:
            for _ in range(20):
                await calls[0].event(token("tick"))
                await wait_until(lambda: ticked.wait_for_next())
            await call.event(token("late"))
            await call.finish()
        else:
            calls.append(call)
            await call.event(token("first"))
            await call.wait_closed()

    class Ticks:
        """Looks that pass between two ticks: enough that silence is looked into several times."""

        def __init__(self) -> None:
            self.looks = 0

        def wait_for_next(self) -> bool:
            self.looks += 1
            return self.looks % 5 == 0

    calls: list[EngineCall] = []
    ticked = Ticks()
    limits = Limits(first_token_min_seconds=0.1, first_token_factor=0.0)
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(STREAM))
        await connection.reader.readuntil(b"first")
        answer = await request(running.url, STREAM | {"messages": [{"role": "user", "content": "slow"}]})
        assert answer.events[-1] == "[DONE]"
        assert answer.fields["x-fairlead-reason"] != "retry-1"
        await connection.close()


@pytest.mark.parametrize(
    ("path", "body", "is_proof"),
    [
        ("/v1/chat/completions", GOOD, True),
        ("/v1/chat/completions", chat(1), False),
        ("/tokenize", {"model": "tiny", "prompt": "hi"}, False),
    ],
)
async def test_answers_that_need_no_core_do_not_hide_an_engine_that_hangs(
    path: str, body: dict[str, object], is_proof: bool
) -> None:
    async def script(call: EngineCall) -> None:
        if len(call.body) > 500:
            await call.respond({"error": {"message": "too long", "code": 400}}, "400 Bad Request")
        elif call.path == "/tokenize":
            await call.respond({"tokens": [1]})
        else:
            await well_behaved(call)

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        stack = running.gateway.stages
        detector = stack.failures.outlier_detector
        for _ in range(3):
            detector.on_failure("e-0/0/0", "timeout", running.gateway.runtime.now(), ("e-0/0/0",))
        assert (await request(running.url, body, path=path)).status in (200, 400)
        assert ("e-0/0/0" not in detector.ejection_records.by_instance) is is_proof
        assert ("e-0/0/0" in detector.answer_times()) is is_proof
        assert (stack.pool.activity(engine.url).receive_count > 0) is is_proof


async def test_rank_that_hangs_is_not_hidden_by_another_of_its_server() -> None:
    async with scripted_engine() as engine:
        fleet = fleet_of([engine.url])
        (instance,) = fleet.instances[MODEL_KEY]
        ranked = replace(fleet, instances={MODEL_KEY: (replace(instance, dp_rank=1),)})
        async with running_gateway(ranked) as running:
            assert (await request(running.url, GOOD)).status == 200
            assert engine.calls[0].header("x-data-parallel-rank") == "1"
            pool = running.gateway.stages.pool
            counts = [pool.activity(activity_key(engine.url, rank)).receive_count for rank in (None, 0, 1)]
            assert counts == [0, 0, 1]
            running.gateway.update_fleet(replace(ranked, version=2))
            assert pool.activity(activity_key(engine.url, 1)).receive_count == 1


async def test_decision_describes_few_of_the_instances_that_are_ejected() -> None:
    fleet = fleet_of([f"http://127.0.0.1:{port}" for port in range(20_000, 20_200)])
    async with running_gateway(fleet) as running:
        routers, now = running.gateway.stages.routers.serving, running.gateway.runtime.now()
        detector, names = running.gateway.stages.failures.outlier_detector, list(routers.ready_instances(MODEL_KEY))
        for name in names[:100]:
            for _ in range(3):
                detector.on_failure(name, "refused", now, names)
        request = RouteRequest("r", PrefixChain((), (), 0), 10.0, None)
        decision = routers.choose(MODEL_KEY, request, now, frozenset())
        assert len(detector.ejected(names, now)) == 100
        assert decision.chosen in names[100:]
        described = [rejected for rejected in decision.rejected if rejected.id in names[:100]]
        assert len(described) == 16
        assert all("ejected" in rejected.why for rejected in described)
