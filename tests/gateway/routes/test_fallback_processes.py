"""A model's only engine is killed: the next model of the route answers, and header and log say so.

Gateway and engines are processes, as users run them.
"""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.cli.command_line import run_program
from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.sockets

FLEET = """\
models:
  - {{name: big, instances: [{{url: "{big}"}}]}}
  - {{name: middle, instances: []}}
  - {{name: small, instances: [{{url: "{small}"}}]}}
routes:
  - name: assistant
    targets: [{{model: big}}]
    onFailure:
      - {{when: [Unavailable], to: middle}}
      - {{when: [Unavailable, NoCapacity], to: small}}
"""


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "assistant", "max_tokens": 4, "messages": [{"role": "user", "content": "Why?"}], **more}


async def explain(request_id: str, manage: str) -> str:
    done = await asyncio.to_thread(run_program, "explain", "request", request_id, "--manage", manage)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_killed_engine_is_answered_for_by_the_next_model(tmp_path: Path) -> None:
    async with engine_process(model="big") as big, engine_process(model="small") as small:
        path = tmp_path / "fleet.yaml"
        path.write_text(FLEET.format(big=big.url, small=small.url))
        async with gateway_process(path, "--workers", "1") as gateway:
            first = await request(gateway.url, chat())
            assert (first.status, first.fields["x-fairlead-model"]) == (200, "default/big")
            assert "x-fairlead-fallback" not in first.fields
            big.send(signal.SIGKILL)
            await big.process.wait()
            replies = [await request(gateway.url, chat(stream=number % 2 == 1)) for number in range(8)]
            for answer in replies:
                assert (answer.status, answer.complete) == (200, True)
                assert answer.fields["x-fairlead-model"] == "default/small"
                assert answer.fields["x-fairlead-fallback"] == "default/big Unavailable"
            assert await gateway.metric("fairlead_gateway_fallbacks_total") == len(replies)
            decision = replies[-1].fields["x-fairlead-decision"]
            logged = await gateway.get_json(f"/api/decisions/{decision}")
            assert logged["model"] == "default/small"
            (step,) = logged["route"]["fallbacks"]
            assert (step["failed"], step["kind"], step["model"]) == ("default/big", "Unavailable", "default/small")
            explanation = await explain(decision, gateway.manage)
            assert "assistant is the route default/assistant → default/big, its only target" in explanation
            assert "; default/big Unavailable → default/small, of the least weight" in explanation
