"""The source of a prompt's tokens: the engine, or the local tokenizer once it proved right."""

import asyncio
from collections.abc import Sequence

import pytest

from fairlead.errors import SettingsError, Unavailable
from fairlead.fleet.model import Instance
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.dialects.completions import COMPLETIONS
from fairlead_gateway.kv_index.messages import CHAT_SAMPLE, PromptSample
from fairlead_gateway.kv_index.supervisor.local_tokenizer import (
    TOKENIZE_REFUSED_SECONDS,
    TOKENIZER_UNVERIFIED_PROMPTS,
    LocalTokenizer,
    TokenSource,
    parse_token_source,
)
from fairlead_gateway.kv_index.supervisor.token_fetcher import TokenFetcher
from fairlead_gateway.kv_index.supervisor.tokenize_api import TokenizeQuery
from fairlead_gateway.peers.messages import Dispatch

MODEL = "team/tiny"
INSTANCE = Instance("a", "team", "tiny", "main", "http://a")
TEXT = b'{"model": "tiny", "prompt": "some text"}'
CHATTED = b'{"model": "tiny", "messages": [{"role": "user", "content": "some text"}]}'


class Scene:
    """One model with an engine, a local tokenizer, and an index that confirms its tokens or not.

    The engine may refuse to tokenize.
    """

    def __init__(self, *, here: bool = True, engine: bool = True) -> None:
        self.clock = ManualClock()
        self.engine = engine
        self.true = True
        self.away = ""
        self.learned: list[tuple[list[int], bool]] = []
        self.asked_here: list[tuple[str, bytes, bool]] = []
        self.waited: list[float] = []
        self.asked_engine = 0
        self.here = LocalTokenizer(self, "/tokenizers", MODEL, self.clock) if here else None
        self.asking = TokenFetcher(self.post, self.learn, self.clock, self.here, self.pause)
        self.number = 0

    async def tokenize(self, path: str, text: bytes, *, add_special_tokens: bool) -> Sequence[int]:
        self.asked_here.append((path, text, add_special_tokens))
        if self.away:
            raise Unavailable(self.away)
        return [1, 2, 3]

    def warning(self, path: str) -> str:
        del path
        return ""

    async def post(self, instance: Instance, question: bytes | None) -> bytes:
        del instance
        if question is None:
            return b'{"data": [{"id": "tiny"}]}'
        self.asked_engine += 1
        if not self.engine:
            raise Unavailable("answered 404")
        return b'{"tokens": [7, 8]}'

    def learn(
        self, row: Dispatch, tokens: Sequence[int], asked: TokenizeQuery, adapter: str | None, doubted: bool
    ) -> int | None:
        del row, asked, adapter
        if doubted and not self.true:
            return None
        self.learned.append((list(tokens), doubted))
        return 1

    async def pause(self, seconds: float) -> None:
        self.waited.append(seconds)

    async def prompt(self, kind: str = COMPLETIONS.name, body: bytes = TEXT) -> bool:
        """Sends a prompt that is not linked; returns whether its body was requested."""
        self.clock.advance(1.0)
        self.number += 1
        row = Dispatch(MODEL, INSTANCE.id, b"", self.number, size=100)
        if not self.asking.should_fetch(row):
            return False
        self.asking.on_sample(PromptSample(self.number, kind, body), {INSTANCE.id: INSTANCE})
        await asyncio.gather(*self.asking._tasks)
        return True


async def test_text_is_tokenized_here_and_chats_by_the_engine() -> None:
    scene = Scene()
    await scene.prompt()
    await scene.prompt(CHAT_SAMPLE, CHATTED)
    await scene.prompt(body=b'{"prompt": "x", "add_special_tokens": false}')
    assert scene.learned == [([1, 2, 3], True), ([7, 8], False), ([1, 2, 3], True)]
    assert scene.asked_here == [
        ("/tokenizers/team/tiny/tokenizer.json", b'"some text"', True),
        ("/tokenizers/team/tiny/tokenizer.json", b'"x"', False),
    ]
    assert scene.asking.description == (
        "text prompts are tokenized by the gateway's process, engines are queried for the tokens of chats"
    )


async def test_without_a_tokenizer_the_engine_is_asked_and_people_are_told_why() -> None:
    scene = Scene()
    scene.away = "No such file or directory"
    await scene.prompt()
    assert scene.learned == [([7, 8], False)]
    path = "/tokenizers/team/tiny/tokenizer.json"
    assert scene.asking.description == (
        f"engines are queried for the tokens of prompts: {path}: No such file or directory"
    )
    scene.away = ""
    await scene.prompt()
    assert scene.learned[-1] == ([1, 2, 3], True)
    assert "No such file" not in scene.asking.description


async def test_an_engine_that_tells_no_tokens_does_not_keep_text_from_being_linked() -> None:
    scene = Scene(engine=False)
    await scene.prompt(CHAT_SAMPLE, CHATTED)
    assert scene.asking.description.endswith("of chats; a: answered 404")
    await scene.prompt()
    await scene.prompt(CHAT_SAMPLE, CHATTED)
    assert scene.learned == [([1, 2, 3], True)]
    assert scene.asked_engine == 1, "it was asked once, and then not for a minute"


async def test_an_engine_that_tells_no_tokens_is_not_asked_by_whoever_has_no_tokenizer() -> None:
    scene = Scene(here=False, engine=False)
    assert await scene.prompt()
    assert not await scene.prompt()
    scene.clock.advance(TOKENIZE_REFUSED_SECONDS)
    assert await scene.prompt()
    assert scene.learned == []


async def test_tokenizer_that_no_engine_confirms_links_nothing_and_gives_way() -> None:
    scene = Scene()
    scene.true = False
    for _ in range(TOKENIZER_UNVERIFIED_PROMPTS):
        assert scene.here.is_trusted
        await scene.prompt()
    assert scene.learned == []
    assert sum(scene.waited) / TOKENIZER_UNVERIFIED_PROMPTS == 7.75, "seconds that a prompt may wait to be computed"
    await scene.prompt()
    assert scene.learned == [([7, 8], False)]
    assert (
        "no engine reported the tokens of /tokenizers/team/tiny/tokenizer.json for 8 prompts"
        in scene.asking.description
    )
    scene.clock.advance(TOKENIZE_REFUSED_SECONDS)
    scene.true = True
    await scene.prompt()
    assert scene.learned[-1] == ([1, 2, 3], True)


async def test_prompts_that_are_borne_out_in_between_keep_the_tokenizer_in_use() -> None:
    scene = Scene()
    for number in range(4 * TOKENIZER_UNVERIFIED_PROMPTS):
        scene.true = number % 3 == 0
        await scene.prompt()
    assert scene.here.is_trusted
    assert len(scene.learned) > TOKENIZER_UNVERIFIED_PROMPTS


def test_a_name_that_is_no_path_below_the_folder_is_not_followed() -> None:
    scene = Scene()
    for key in ("team/..", "../tiny", "a/b/c", "tiny", "/tiny", "team/"):
        here = LocalTokenizer(scene, "/tokenizers", key, scene.clock)
        assert not here.is_trusted
        assert (
            here.description
            == "engines are queried for the tokens of prompts: no tokenizer: the model's name is not usable as a path"
        )


def test_what_the_setting_may_say() -> None:
    assert parse_token_source(None) is TokenSource.ENGINE
    assert parse_token_source("off") is TokenSource.OFF
    assert parse_token_source("process", "/tokenizers") is TokenSource.PROCESS
    with pytest.raises(SettingsError, match="not a source of tokens"):
        parse_token_source("guess")
    with pytest.raises(SettingsError, match="without a folder of tokenizers"):
        parse_token_source("process", None)
