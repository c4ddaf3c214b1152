"""The source of a prompt's tokens: engines, as long as they give them."""

import asyncio
from array import array
from collections.abc import Sequence

import pytest

from fairlead.errors import SettingsError, Unavailable
from fairlead.fleet.model import Instance
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.dialects.completions import COMPLETIONS
from fairlead_gateway.kv_index.messages import CHAT_SAMPLE, PromptSample
from fairlead_gateway.kv_index.supervisor.token_fetcher import (
    TOKENIZE_REFUSED_SECONDS,
    TokenFetcher,
    TokenSource,
    parse_token_source,
)
from fairlead_gateway.kv_index.supervisor.tokenize_api import TokenizeQuery
from fairlead_gateway.peers.messages import Dispatch

MODEL = "team/tiny"
INSTANCE = Instance("a", "team", "tiny", "main", "http://a")
TEXT = b'{"model": "tiny", "prompt": "some text"}'
CHATTED = b'{"model": "tiny", "messages": [{"role": "user", "content": "some text"}]}'
TOKEN_IDS = b'{"model": "tiny", "prompt": [4, 5, 6]}'


class Scene:
    """One model with an engine, which may refuse to tokenize."""

    def __init__(self, *, engine: bool = True) -> None:
        self.clock = ManualClock()
        self.engine = engine
        self.learned: list[list[int]] = []
        self.failed_tries = 0
        self.waited: list[float] = []
        self.asked_engine = 0
        self.asking = TokenFetcher(self.post, self.learn, self.clock, self.pause)
        self.number = 0

    async def post(self, instance: Instance, question: bytes | None) -> bytes:
        del instance
        if question is None:
            return b'{"data": [{"id": "tiny"}]}'
        self.asked_engine += 1
        if not self.engine:
            raise Unavailable("answered 404")
        return b'{"tokens": [7, 8]}'

    def learn(self, row: Dispatch, tokens: Sequence[int], asked: TokenizeQuery, adapter: str | None) -> int | None:
        del row, asked, adapter
        if self.failed_tries:
            self.failed_tries -= 1
            return None
        self.learned.append(list(tokens))
        return 1

    async def pause(self, seconds: float) -> None:
        self.waited.append(seconds)

    async def prompt(self, kind: str = COMPLETIONS.name, body: bytes = TEXT, tokens: bytes = b"") -> bool:
        """Sends a prompt that is not linked; returns whether its body was requested."""
        self.clock.advance(1.0)
        self.number += 1
        row = Dispatch(MODEL, INSTANCE.id, b"", self.number, size=100)
        if not self.asking.should_fetch(row):
            return False
        self.asking.on_sample(PromptSample(self.number, kind, body, "", tokens), {INSTANCE.id: INSTANCE})
        await asyncio.gather(*self.asking._tasks)
        return True


async def test_engines_are_asked_for_text_and_chats_and_token_ids_need_no_query() -> None:
    scene = Scene()
    await scene.prompt()
    await scene.prompt(CHAT_SAMPLE, CHATTED)
    await scene.prompt(body=TOKEN_IDS)
    assert scene.learned == [[7, 8], [7, 8], [4, 5, 6]]
    assert scene.asked_engine == 2
    assert scene.asking.description == "engines send the tokens of prompts, or are queried for them"


async def test_no_engine_is_queried_for_tokens_that_it_has_sent() -> None:
    scene = Scene(engine=False)
    ids = array("I", [7, 1 << 31]).tobytes()
    assert await scene.prompt(CHAT_SAMPLE, CHATTED, ids)
    assert scene.asked_engine == 0
    await scene.prompt()
    assert scene.asked_engine == 1
    assert await scene.prompt(tokens=ids), "an engine without /tokenize is linked by what it sends"
    assert scene.learned == [[7, 1 << 31]] * 2
    assert scene.asked_engine == 1


async def test_tokens_of_a_prompt_with_a_picture_are_not_learned() -> None:
    scene = Scene()
    pictured = CHATTED.replace(b'"some text"', b'[{"type": "image_url", "image_url": {"url": "data:,"}}]')
    await scene.prompt(CHAT_SAMPLE, pictured, array("I", [7]).tobytes())
    assert scene.learned == []


async def test_an_engine_that_tells_no_tokens_is_asked_again_after_a_minute() -> None:
    scene = Scene(engine=False)
    assert await scene.prompt()
    assert scene.asking.description == "engines send the tokens of prompts, or are queried for them; a: answered 404"
    assert not await scene.prompt()
    assert not await scene.prompt(CHAT_SAMPLE, CHATTED)
    scene.clock.advance(TOKENIZE_REFUSED_SECONDS)
    assert await scene.prompt()
    assert scene.learned == []
    assert scene.asked_engine == 2


@pytest.mark.parametrize("failed", range(5))
async def test_tokens_wait_a_moment_for_the_block_size_of_their_engine(failed: int) -> None:
    scene = Scene()
    scene.failed_tries = failed
    await scene.prompt()
    assert scene.learned == ([[7, 8]] if failed < 4 else [])
    assert sum(scene.waited) == min(failed, 3) * 0.25


@pytest.mark.parametrize("text", [None, "", *TokenSource])
def test_the_setting_names_a_source(text: str | None) -> None:
    assert parse_token_source(text) is TokenSource(text or "engine")


@pytest.mark.parametrize("text", ["process", "guess", "Engine", "engine,off", " off"])
def test_any_other_source_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(SettingsError, match="not a source of tokens") as refused:
        parse_token_source(text)
    assert (refused.value.field, refused.value.hint) == ("FAIRLEAD_LINKS", "use engine or off")
