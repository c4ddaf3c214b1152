"""A prompt with a canary takes every path, good and bad: nothing that is written down
repeats it.
"""

import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.fleet.model import SloTargets
from fairlead.limits import Limits
from fairlead_gateway.worker.observability.observers import RequestObservers
from fairlead_gateway.worker.observability.settings import ObservabilitySettings
from fairlead_testing.engines.scripted import (
    EngineCall,
    Script,
    event,
    hang_up,
    responds,
    scripted_engine,
    streams,
    token,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.simulated.event_loop import running_clock

pytestmark = pytest.mark.simulated

CANARY = "canary-7c1e"
BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": f"tell me of {CANARY}"}],
    "user": "u",
    "tools": [{"type": "function", "function": {"name": CANARY}}],
}


broken_stream = streams(token("a"), end=hang_up)


async def not_json(call: EngineCall) -> None:
    await call.respond(b"<html>" + call.body, kind="text/html")


failing_with_the_prompt = responds({"error": {"message": CANARY, "code": 500}}, "500 Internal Server Error")
event_with_the_prompt = streams(event({"error": {"message": CANARY, "code": 500}}), end=None)


@pytest.mark.parametrize(
    "script", [well_behaved, hang_up, broken_stream, not_json, failing_with_the_prompt, event_with_the_prompt]
)
async def test_no_log_line_decision_metric_span_or_error_repeats_a_prompt(
    script: Script, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> str:
        limits = replace(Limits(), stream_idle_seconds=0.5, span_batch_seconds=0.0)
        what = ObservabilitySettings(
            access_log=str(tmp_path / "access.log"), trace_endpoint=collector.url, trace_share=1.0
        )
        draw = random.Random(1).getrandbits
        watching = RequestObservers(what, clock=running_clock(), limits=limits, instance_id="gw", draw_bits=draw)
        async with scripted_engine(script) as engine:
            fleet = fleet_of([engine.url] * 2, objectives=SloTargets(ttft_seconds=1.0))
            async with running_gateway(fleet, limits, observers=watching) as running:
                written = ""
                for stream in (False, True):
                    path = f"/v1/chat/completions?q={CANARY}"
                    answer = await request(running.url, BODY | {"stream": stream}, path=path)
                    written += str(answer.fields) + answer.body.decode()
                leaving = await RawConnection.connect(running.url)
                await leaving.send(post_request(BODY))
                await leaving.close()
                await request(running.url, BODY | {"model": "nobody"})
                gateway = running.gateway
                written += gateway.telemetry.render(fleet, running.loads(), gateway.runtime.now()).decode()
                return written + repr([gateway.decisions.latest(10), gateway.readiness(), running.loads()])

    with CannedServer({"/v1/traces": CannedResponse([b"{}"])}) as collector:
        written = await main()
    lines, spans = (tmp_path / "access.log").read_text(), b"".join(asked.body for asked in collector.requests)
    assert lines.count("\n") >= 3
    assert b"attempt tiny" in spans
    assert CANARY not in written + lines + spans.decode() + caplog.text


async def test_a_defect_of_ours_is_a_500_with_an_id_and_its_log_line_holds_no_prompt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway_of(well_behaved) as (running, *_):

        def defect(*_: object, **__: object) -> None:
            raise ValueError(f"cannot take {BODY}")

        monkeypatch.setattr(running.gateway.stack.routers.serving, "choose", defect)
        answer = await request(running.url, BODY)
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert CANARY not in answer.body.decode()
        assert answer.fields["x-request-id"] in caplog.text
        assert "ValueError" in caplog.text
        assert CANARY not in caplog.text
        monkeypatch.undo()
        assert (await request(running.url, BODY)).status == 200
