"""The supervisor's client of the tokenizing process: its answers, and queries that crash it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fairlead.errors import Unavailable
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.kv_index.tokenizer.client import TokenizerClient
from fairlead_gateway.kv_index.tokenizer.process import TOKENIZING_FILE_BYTES


def tokenizer_file(path: Path, *, begins: bool = True, swapped: bool = False) -> str:
    words = {"<unk>": 0, "<s>": 1, "one": 2, "two": 3, "three": 4}
    if swapped:
        words["one"], words["two"] = words["two"], words["one"]
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(path))
    return str(path)


@asynccontextmanager
async def tokenizer_client(*command: str, **bounds: Any) -> AsyncIterator[tuple[TokenizerClient, ManualClock]]:
    clock = ManualClock()
    client = TokenizerClient(clock, os.environ, **({"command": command} if command else {}), **bounds)
    try:
        yield client, clock
    finally:
        await client.close()


async def refused(client: TokenizerClient, path: str, text: bytes = b'"one"') -> str:
    with pytest.raises(Unavailable) as raised:
        await client.tokenize(path, text, add_special_tokens=True)
    return raised.value.message


async def test_special_tokens_go_around_a_text_where_they_are_wanted(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path / "tokenizer.json")
    async with tokenizer_client() as (client, _):
        assert list(await client.tokenize(path, b'"one two\\u0020three x"', add_special_tokens=True)) == [1, 2, 3, 4, 0]
        assert list(await client.tokenize(path, b'"one two three"', add_special_tokens=False)) == [2, 3, 4]
        assert client._child.start_count == 1


async def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path / "tokenizer.json")
    async with tokenizer_client() as (client, _):
        assert list(await client.tokenize(path, b'"one"', add_special_tokens=True)) == [1, 2]
        (tmp_path / "new").write_text("")
        tokenizer_file(tmp_path / "new", swapped=True)
        os.replace(tmp_path / "new", path)
        assert list(await client.tokenize(path, b'"one"', add_special_tokens=True)) == [1, 3]


async def test_what_is_no_tokenizer_is_said_in_words_and_the_process_goes_on(tmp_path: Path) -> None:
    good = tokenizer_file(tmp_path / "tokenizer.json")
    (tmp_path / "broken.json").write_text('{"model": {"type": "BPE"}}')
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(TOKENIZING_FILE_BYTES + 1)
    async with tokenizer_client() as (client, _):
        assert await refused(client, str(tmp_path / "none.json")) == "No such file or directory"
        assert await refused(client, str(tmp_path / "broken.json")) == "the file is not a tokenizer: Exception"
        assert (
            await refused(client, str(tmp_path / "large.json"))
            == f"the file is larger than {TOKENIZING_FILE_BYTES} bytes"
        )
        assert await refused(client, good, b'"\\ud800"') == "the prompt is not text"
        assert list(await client.tokenize(good, b'"one"', add_special_tokens=True)) == [1, 2]
        assert client._child.start_count == 1


async def test_a_file_with_which_the_process_ends_waits_longer_each_time_and_others_do_not(tmp_path: Path) -> None:
    """The process of this test exits at a query about the file `deadly`."""
    good = tokenizer_file(tmp_path / "tokenizer.json")
    code = (
        "import sys; from fairlead_gateway.kv_index.tokenizer import process as p\n"
        "class T(p.TokenizerCache):\n"
        "    def tokenize(self, request):\n"
        "        return sys.exit(3) if request.path == 'deadly' else super().tokenize(request)\n"
        "p.serve_parent(p.TokenizeRequest, T().tokenize)"
    )
    async with tokenizer_client(sys.executable, "-c", code) as (client, clock):
        assert await refused(client, "deadly") == "the tokenizing process ended"
        assert client._child.start_count == 1
        assert await refused(client, "deadly") == "the tokenizing process ended"
        assert client._child.start_count == 1, "nobody asked it again"
        assert list(await client.tokenize(good, b'"one"', add_special_tokens=True)) == [1, 2]
        assert client._child.start_count == 2
        clock.advance(1.0)
        await refused(client, "deadly")
        clock.advance(1.0)
        assert list(await client.tokenize(good, b'"one"', add_special_tokens=True)) == [1, 2]
        starts = client._child.start_count
        await refused(client, "deadly")
        assert client._child.start_count == starts, "the second wait is of two seconds"
        clock.advance(1.0)
        await refused(client, "deadly")
        assert list(await client.tokenize(good, b'"one"', add_special_tokens=True)) == [1, 2]
        assert client._child.start_count == starts + 1


async def test_a_process_that_was_killed_between_two_questions_is_nobodys_fault(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path / "tokenizer.json")
    async with tokenizer_client() as (client, _):
        await client.tokenize(path, b'"one"', add_special_tokens=True)
        client._child.process.kill()
        client._child.process.wait()
        assert list(await client.tokenize(path, b'"two"', add_special_tokens=True)) == [1, 3]
        assert client._child.start_count == 2


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.stdin.buffer.read()", "the tokenizing process gave no answer within 0.1 s"),
        ("import sys; sys.stdout.write('x' * 64)", "the tokenizing process sent a reply that is too large"),
        ("import sys; sys.stdout.buffer.write(bytes((0, 0, 0, 1, 144)))", None),
    ],
)
async def test_one_that_is_late_or_talks_nonsense_is_replaced(code: str, message: str | None) -> None:
    seconds = 0.1 if message and "within" in message else 60.0
    async with tokenizer_client(sys.executable, "-c", code, reply_seconds=seconds) as (client, _):
        words = await refused(client, "any")
        assert message is None or words == message
        assert client._child.process is None


async def test_a_process_that_cannot_be_started_is_said() -> None:
    async with tokenizer_client("/nonexistent/python") as (client, _):
        assert "no tokenizing process" in await refused(client, "any")


async def test_no_more_wait_than_may(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path / "tokenizer.json")
    async with tokenizer_client(max_waiting=4) as (client, _):
        asked = [client.tokenize(path, b'"one"', add_special_tokens=True) for _ in range(6)]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(each, Unavailable) for each in replies) == 2
        assert sum(not isinstance(each, BaseException) and list(each) == [1, 2] for each in replies) == 4


async def test_the_gateways_secrets_are_not_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "canary")
    code = (
        "import os, sys; from fairlead_gateway.ipc.child_process import encode_frame\n"
        "from fairlead_gateway.kv_index.tokenizer.messages import TokenizeReply\n"
        "found = 'canary' in str(os.environ)\n"
        "sys.stdout.buffer.write(encode_frame(TokenizeReply(1, problem=f'seen: {found}')))"
    )
    async with tokenizer_client(sys.executable, "-c", code) as (client, _):
        assert await refused(client, "any") == "seen: False"
