"""The worker's own probes of ejected instances, with a clock under the test's control."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import InstanceState
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.proxy.gateway import Gateway
from fairlead_gateway.resilience.outlier_detection import EjectionRecord, FaultSource
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_gateway.tenants.worker.api_keys import GatewaySecrets
from fairlead_testing.engines.scripted import EngineCall, Script, ScriptedEngine, responds, scripted_engine, silent
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

LIMITS = Limits(ejection_probe_after_seconds=10.0, ejection_probe_interval_seconds=15.0, ejection_probe_seconds=0.02)
HUNG, OTHER = "e-0/0/0", "e-1/1/0"


answers = responds({"object": "text_completion", "choices": [{"index": 0, "text": "x"}]})


class ProberFixture:
    """A gateway without clients; its first instance was ejected at 0 s after three timeouts."""

    def __init__(self, urls: list[str], limits: Limits) -> None:
        self.clock = ManualClock()
        runtime = WorkerRuntime(self.clock, limits, asyncio.get_running_loop())
        secrets = GatewaySecrets(b"a secret of the test", EngineCredentials({}, runtime.now))
        self.gateway = Gateway(runtime, secrets, create_request_id=lambda: "req")
        self.gateway.update_fleet(fleet_of(urls))
        self.detector = self.gateway.stages.failures.outlier_detector
        self.urls = urls
        for _ in range(3):
            self.detector.on_failure(HUNG, "timeout", 0.0, (HUNG, OTHER))

    @property
    def record(self) -> EjectionRecord | None:
        return self.detector.ejection_records.by_instance.get(HUNG)

    def state(self) -> HealthState:
        return self.detector.health(HUNG, self.clock.now())[0]

    def poll_at(self, now: float) -> None:
        self.clock.advance(now - self.clock.now())
        self.gateway.stages.ejection_prober.poll()

    async def wait_probe_ended(self) -> None:
        await wait_until(lambda: self.record is None or not self.record.is_probing)


@asynccontextmanager
async def prober(script: Script, limits: Limits = LIMITS) -> AsyncIterator[tuple[ProberFixture, ScriptedEngine]]:
    async with scripted_engine(script) as engine, scripted_engine() as other:
        fixture = ProberFixture([engine.url, other.url], limits)
        try:
            yield fixture, engine
        finally:
            fixture.gateway.close()


async def test_hanging_engine_gets_spaced_probes_for_one_token_which_fail() -> None:
    async with prober(silent) as (fixture, engine):
        fixture.poll_at(9.0)
        assert engine.calls == []
        for number, now in ((1, 10.0), (2, 25.0), (3, 40.0)):
            fixture.poll_at(now)
            fixture.poll_at(now)  # one at a time
            await fixture.wait_probe_ended()
            fixture.poll_at(now + 14.0)  # too early for the next one
            assert (fixture.record.since, fixture.record.cause) == (0.0, "3 timeouts")
            assert (fixture.record.failed_probes, len(engine.calls)) == (number, number)
        bodies = [call.json for call in engine.calls]
        assert bodies[0] | {"cache_salt": ""} == {
            "model": "tiny",
            "prompt": "hi",
            "max_tokens": 1,
            "temperature": 0,
            "cache_salt": "",
        }
        assert len({body["cache_salt"] for body in bodies}) == 1
        assert len(bodies[0]["cache_salt"]) == 32


@pytest.mark.parametrize(
    ("engine", "has_salt"),
    [("vllm", True), ("sglang", True), ("sim", True), ("tensorrt_llm", False), ("llama_cpp", False)],
)
async def test_engines_that_may_refuse_a_salt_get_a_probe_without_one(engine: str, has_salt: bool) -> None:
    async def refuses_unknown_fields(call: EngineCall) -> None:
        if not has_salt and "cache_salt" in call.json:
            await call.respond({"error": "cache_salt: Extra inputs are not permitted"}, "400 Bad Request")
        await answers(call)

    async with prober(refuses_unknown_fields, Limits(ejection_probe_after_seconds=10.0)) as (fixture, server):
        fleet = fleet_of(fixture.urls)
        instances = tuple(replace(instance, engine=engine) for instance in fleet.instances[MODEL_KEY])
        fixture.gateway.update_fleet(replace(fleet, instances={MODEL_KEY: instances}))
        fixture.clock.advance(10.0)
        assert fixture.state() is HealthState.PROBING
        fixture.poll_at(10.0)
        await wait_until(lambda: fixture.record is None)
        assert fixture.state() is HealthState.WARMING
        assert ["cache_salt" in call.json for call in server.calls] == [has_salt]


async def test_failed_probe_ejects_an_instance_that_was_to_return() -> None:
    async with prober(silent) as (fixture, _):
        fixture.clock.advance(10.0)
        assert fixture.state() is HealthState.PROBING
        fixture.poll_at(10.0)
        await wait_until(lambda: not fixture.detector.is_usable(HUNG, 10.0))  # no client waits for it too
        await fixture.wait_probe_ended()
        assert fixture.state() is HealthState.EJECTED


async def test_answered_probe_ends_the_record_and_the_instance_warms_up() -> None:
    async with prober(answers, Limits(ejection_probe_after_seconds=10.0)) as (fixture, _):
        fixture.clock.advance(10.0)
        assert fixture.state() is HealthState.PROBING
        fixture.poll_at(10.0)
        await wait_until(lambda: fixture.record is None)
        assert fixture.state() is HealthState.WARMING


@pytest.mark.parametrize(
    ("status", "failed_probes"),
    [
        ("500 Internal Server Error", 1),
        ("503 Service Unavailable", 0),
        ("429 Too Many Requests", 0),
        ("404 Not Found", 0),
    ],
)
async def test_only_server_errors_count_as_failed_probes_and_load_does_not(status: str, failed_probes: int) -> None:
    async with prober(responds({"error": {"message": "no"}}, status), Limits(ejection_probe_after_seconds=10.0)) as (
        fixture,
        _,
    ):
        fixture.poll_at(10.0)
        await fixture.wait_probe_ended()
        assert (fixture.record.since, fixture.record.failed_probes) == (0.0, failed_probes)


async def test_requests_that_an_engine_fails_do_not_make_it_hang_where_no_probe_suits() -> None:
    async with prober(
        responds({"error": {"message": "no"}}, "404 Not Found"), Limits(ejection_probe_after_seconds=10.0)
    ) as (fixture, _):
        fixture.detector.ejection_records.end(HUNG)
        fixture.detector.ejection_records.begin(HUNG, ["status-500"], "3 status-500", 0.0)
        fixture.poll_at(10.0)
        await wait_until(lambda: fixture.record is None)


async def test_engine_that_sends_to_another_request_is_slow_and_does_not_hang() -> None:
    async with prober(silent) as (fixture, engine):
        fixture.poll_at(10.0)
        await wait_until(lambda: len(engine.calls) == 1)
        fixture.gateway.stages.pool.activity(engine.url).receive_count += 1
        await fixture.wait_probe_ended()
        assert (fixture.record.since, fixture.record.failed_probes) == (10.0, 0)


async def test_engine_that_listens_no_more_is_not_reported_as_hung() -> None:
    async with prober(silent) as (fixture, engine):
        engine.server.close()
        await engine.server.wait_closed()
        fixture.poll_at(10.0)
        await wait_until(lambda: fixture.record is None)
        assert fixture.state() is HealthState.EJECTED


async def test_instance_that_is_not_ready_any_more_gets_no_probe() -> None:
    async with prober(silent) as (fixture, engine):
        fixture.gateway.update_fleet(fleet_of(fixture.urls, version=2, states=[InstanceState.STARTING]))
        fixture.poll_at(10.0)
        assert fixture.record is None
        assert engine.calls == []


@pytest.mark.parametrize("script", [answers, silent])
async def test_workers_probe_decides_the_return_that_one_callers_requests_would_prevent(script: Script) -> None:
    async with prober(script) as (fixture, engine):
        fixture.detector.on_success(HUNG, 0.0, CallerKey("steady"))  # of an earlier request; it ends the record
        fixture.clock.advance(7.0)
        assert fixture.detector.ejected((HUNG, OTHER), 7.0) == {}
        fixture.detector.on_dispatch(HUNG)
        source = FaultSource(CallerKey("flood"), b"poison")
        assert not fixture.detector.on_failure(HUNG, "status-500", 7.0, (HUNG, OTHER), source)
        fixture.poll_at(7.5)
        expected = HealthState.WARMING if script is answers else HealthState.EJECTED
        await wait_until(lambda: fixture.state() is expected)
        assert len(engine.calls) == 1
