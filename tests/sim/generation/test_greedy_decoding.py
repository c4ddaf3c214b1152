"""Temperature 0: a cut answer that is sent back continues exactly where it ended."""

import json
from typing import Any

import pytest

from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.http.raw_client import request
from fairlead_testing.sim.engines import running_engines

pytestmark = pytest.mark.simulated

SETTINGS = EngineSettings(model="tiny", served_names=("tiny",), speed=200.0)
KIND = "content-type: application/json\r\n"
CHAT = "/v1/chat/completions"


async def answered(url: str, path: str, body: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Returns text, finish reason and usage."""
    answer = await request(url, {"model": "tiny", "temperature": 0, **body}, path=path, more=KIND)
    assert answer.status == 200, answer.body
    choice = answer.json["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return text, choice["finish_reason"], answer.json["usage"]


@pytest.mark.parametrize("cut", [1, 7, 16, 33])
async def test_a_completion_goes_on_wherever_it_was_cut_and_on_any_engine(cut: int) -> None:
    async with running_engines(2, SETTINGS) as (one, two):
        prompt = "once upon a time"
        whole, _, _ = await answered(one.url, "/v1/completions", {"prompt": prompt, "max_tokens": 50})
        first, _, _ = await answered(two.url, "/v1/completions", {"prompt": prompt, "max_tokens": cut})
        rest, _, _ = await answered(two.url, "/v1/completions", {"prompt": prompt + first, "max_tokens": 50 - cut})
        assert first + rest == whole


async def test_a_chat_goes_on_to_its_natural_end() -> None:
    async with running_engines(2, SETTINGS) as (one, two):
        for number in range(5):
            turn = [{"role": "user", "content": f"question {number}"}]
            whole, reason, counted = await answered(one.url, CHAT, {"messages": turn})
            half = whole[: len(whole) // 8 * 4]
            more = {"continue_final_message": True, "add_generation_prompt": False}
            open_turn = [*turn, {"role": "assistant", "content": half}]
            rest, ended, left = await answered(two.url, CHAT, {"messages": open_turn, **more})
            assert half + rest == whole
            assert ended == reason
            assert left["total_tokens"] == counted["total_tokens"]


async def test_other_prompts_have_other_answers() -> None:
    async with running_engines(1, SETTINGS) as (one,):
        found = {
            (await answered(one.url, "/v1/completions", {"prompt": f"say {number}", "max_tokens": 8}))[0]
            for number in range(20)
        }
        assert len(found) == 20


async def test_the_last_message_cannot_go_on_and_be_answered() -> None:
    async with running_engines(1, SETTINGS) as (one,):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "continue_final_message": True}
        answer = await request(one.url, body, more=KIND)
        assert answer.status == 400
        assert "continue_final_message" in json.loads(answer.body)["error"]["message"]
