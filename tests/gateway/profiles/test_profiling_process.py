"""A gateway process that learns its engines' profiles from requests, and routes by them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.file.format import FileProfile
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.http.raw_client import post_request, send
from fairlead_testing.pytest_hooks.nightly import shortened
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

TRUE, ASSUMED = builtin_profile("910b4"), builtin_profile("h100-llama8b")
TEXT = Tokenizer()


@pytest.mark.parametrize("workers", shortened(["1", "2"], ["2"]))
async def test_the_price_of_a_prompt_is_learned_from_requests(tmp_path: Path, workers: str) -> None:
    """The engine is four times slower than assumed."""
    async with engine_process("--profile", TRUE.name, "--enable-prompt-tokens-details") as engine:
        path = tmp_path / "fleet.yaml"
        write_fleet_file(path, fleet_of([engine.url]))
        async with gateway_process(path, "--workers", workers) as gateway:
            sent = 0

            async def profile() -> dict[str, Any]:
                shown: dict[str, Any] = (await gateway.get_json("/api/fleet"))["models"][0]["instances"][0]["profile"]
                return shown

            async def send_requests() -> None:
                nonlocal sent
                sent += 1
                text = TEXT.random_text(500 + 250 * (sent % 5), f"number {sent}")
                messages = [{"role": "user", "content": text}]
                body = {"model": "tiny", "messages": messages, "max_tokens": 12, "stream": True}
                answers = await send(gateway.url, post_request(body | {"stream_options": {"include_usage": True}}))
                assert answers[0].status == 200

            first = await profile()
            assert not first["learned"]
            assert first["prefill_kilotoken_seconds"] == pytest.approx(ASSUMED.prefill_time(1_000))

            async def learned() -> bool:
                await asyncio.gather(send_requests(), send_requests())
                price = await profile()
                return bool(price["learned"] and price["prefill_kilotoken_seconds"] > 0.6 * TRUE.prefill_time(1_000))

            await wait_until(learned)
            before = (await gateway.get_json("/api/fleet"))["models"][0]["instances"][0]["profile"]
            as_in_a_file = FileProfile.model_validate(before["coefficients"]).to_engine_profile("learned")
            assert as_in_a_file.prefill_time(1_000) == pytest.approx(before["prefill_kilotoken_seconds"])
            assert as_in_a_file.kv_tokens == ASSUMED.kv_tokens
            assert before["decode_step_seconds"] > ASSUMED.step_time(computed=16, sequences=16, resident=16_000)

            async def routed_by_it() -> bool:
                text = TEXT.random_text(1_000, f"last {sent}")
                await send_requests()
                body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
                answer = (await send(gateway.url, post_request(body)))[0]
                decision = await gateway.get_json(f"/api/decisions/{answer.fields['x-fairlead-decision']}")
                seconds = decision["choices"][0]["candidates"][0]["inputs"]["predicted_ttft_seconds"]["value"]
                return bool(seconds > 2 * ASSUMED.prefill_time(1_000))

            await wait_until(routed_by_it)
