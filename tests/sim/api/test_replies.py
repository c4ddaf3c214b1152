"""Tool calls and reasoning of three dialects, byte for byte as vLLM's own handlers write them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fairlead_sim.runtime.settings import ApiSurface, EngineSettings
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.replay import post_request, send_request

pytestmark = pytest.mark.simulated
HANDLERS = Path(__file__).parents[2] / "recordings" / "vllm" / "handlers"
RECORDED: list[dict[str, Any]] = json.loads((HANDLERS / "replies.json").read_text())


def masked(answer: str) -> str:
    """The answer without ids, times, counts and fingerprint, as in the recordings."""
    answer = re.sub(r"(chatcmpl-tool-|chatcmpl-|resp_|msg_|rs_|fc_)[0-9a-f]{16}", r"\1ID", answer)
    answer = re.sub(r'"signature":"\w+"', '"signature":"S"', answer)
    answer = re.sub(r"vllm-0\.32\.0-[0-9a-f]{8}", "vllm-0.32.0-00000000", answer)
    return re.sub(r'("(?:\w+_tokens|created|created_at)":)\d+', r"\g<1>0", answer)


async def reply_to(path: str, body: dict[str, Any], *, reasons: bool = False) -> str:
    settings = EngineSettings(served_names=("tiny",), surface=ApiSurface(reasoning_parser=reasons))
    async with running_engine(settings) as served:
        answer = await send_request(served.url.removeprefix("http://"), post_request(path, body))
        assert answer.status == 200, answer.body
        return answer.body.decode()


@pytest.mark.parametrize("row", RECORDED, ids=[row["name"] for row in RECORDED])
async def test_a_reply_is_written_as_vllm_writes_it(row: dict[str, Any]) -> None:
    answer = await reply_to(row["path"], row["body"], reasons=row["reasons"])
    assert masked(answer).split("\n\n") == row["answer"].split("\n\n")


async def test_usage_counts_reasoning_between_its_marks() -> None:
    def body(**more: Any) -> dict[str, Any]:
        return {"model": "tiny", "structured_outputs": {"choice": ["<think> abc def</think> ghi"]}, **more}

    chat = json.loads(
        await reply_to("/v1/chat/completions", body(messages=[{"role": "user", "content": "x"}]), reasons=True)
    )
    response = json.loads(await reply_to("/v1/responses", body(input="x"), reasons=True))
    assert chat["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    assert chat["choices"][0]["message"]["reasoning"] == " abc def"


async def test_a_reply_that_comes_back_as_a_turn_is_found_in_the_cache() -> None:
    tool = {"name": "read", "input_schema": {"type": "object", "properties": {"path": {"minLength": 200}}}}
    body: dict[str, Any] = {"model": "sim", "max_tokens": 500, "tools": [tool], "tool_choice": {"type": "any"}}
    body["messages"] = [{"role": "user", "content": "Read."}]
    async with running_engine() as served:

        async def message() -> dict[str, Any]:
            answer = await send_request(served.url.removeprefix("http://"), post_request("/v1/messages", body))
            found: dict[str, Any] = answer.json()
            return found

        first = await message()
        call = first["content"][0]
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "ok"}
        body["messages"] += [
            {"role": "assistant", "content": first["content"]},
            {"role": "user", "content": [result]},
        ]
        usage = (await message())["usage"]
    assert len(call["input"]["path"]) == 200
    assert usage["cache_read_input_tokens"] + 16 > first["usage"]["input_tokens"] + first["usage"]["output_tokens"]
