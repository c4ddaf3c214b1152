"""The prefix table against a tokenizer: no link credits tokens that two prompts do not share."""

import json
import re
import time
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.kv_index.links import LinkTable, PromptLinks, common_prefix, estimate_links
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root

START = chain_root("default/tiny")
BLOCK = 4
BYTES = 16
_PIECE = re.compile(r" ?[a-z]{1,5}|.", re.DOTALL)

Message = dict[str, Any]


def tokens_of(text: str) -> list[int]:
    """A tokenizer with pieces of one to six characters, whose cuts depend on what comes next."""
    return [xxhash.xxh32_intdigest(piece.encode()) for piece in _PIECE.findall(text)]


def plain(messages: list[Message], tools: str) -> list[int]:
    return tokens_of(
        f"<s>{tools}"
        + "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
        + "<|assistant|>"
    )


def last_first(messages: list[Message], tools: str) -> list[int]:
    """A template that looks ahead: what it puts first is of the last message."""
    return tokens_of(f"{len(messages)}:{messages[-1]['content'][:3]}|") + plain(messages, tools)


def counting(messages: list[Message], tools: str) -> list[int]:
    """A template that pads by the number of messages, in the middle of the prompt."""
    return tokens_of(messages[0]["content"]) + tokens_of(" pad" * len(messages)) + plain(messages[1:], tools)


TEMPLATES = (plain, last_first, counting)


class Prompt:
    """One prompt in both chains, as a gateway and an engine see it."""

    def __init__(
        self, messages: list[Message], template: Any = plain, tools: str = "", *, ascii_only: bool = True
    ) -> None:
        text = json.dumps(messages, ensure_ascii=ascii_only).encode()[1:-1]
        self.size = len(text)
        self.ends = tuple(range(BYTES, self.size + 1, BYTES))
        state = xxhash.xxh3_64_intdigest(tools.encode())
        chain = []
        for end in self.ends:
            state = xxhash.xxh3_64_intdigest(text[end - BYTES : end], state)
            chain.append(state)
        self.hashes = tuple(chain)
        self.tokens = template(messages, tools)
        self.owns = block_hashes(START, self.tokens, BLOCK)
        tokens = len(self.tokens)
        self.lesson = estimate_links(self.hashes, self.ends, self.owns, size=self.size, tokens=tokens, block_size=BLOCK)

    def learned_by(self, table: LinkTable) -> list[int]:
        return table.learn(self.lesson)


def table_of(most: int = 10_000, most_owns: int = 100_000) -> LinkTable:
    return LinkTable(max_links=most, max_token_hashes=most_owns)


def conversation(*contents: str) -> list[Message]:
    return [{"role": "user" if index % 2 == 0 else "assistant", "content": text} for index, text in enumerate(contents)]


_WORDS = st.lists(st.sampled_from(["alpha", " be", "ta ", "ü", "\n", '"', "\\", "日本", "x" * 30]), max_size=30).map(
    "".join
)
_CONTENTS = st.lists(_WORDS, min_size=1, max_size=5)


@st.composite
def families(draw: st.DrawFn) -> list[Prompt]:
    """Prompts of one template with common starts, tools first, and two spellings of some text."""
    template, tools = draw(st.sampled_from(TEMPLATES)), draw(st.sampled_from(["", " tool" * 40]))
    base = draw(_CONTENTS)
    prompts = []
    for _ in range(draw(st.integers(1, 6))):
        kept = draw(st.integers(0, len(base)))
        contents = [*base[:kept], *draw(_CONTENTS)]
        prompts.append(Prompt(conversation(*contents), template, tools, ascii_only=draw(st.booleans())))
    return prompts


def check(table: LinkTable, prompts: list[Prompt]) -> None:
    """Every link is right for every prompt that was learned and has its byte block."""
    for prompt in prompts:
        deepest = 0
        for digest in prompt.hashes:
            link = table.get(digest)
            if link is not None:
                assert deepest <= link.depth <= len(prompt.owns)
                assert link.token_hash == (prompt.owns[link.depth - 1] if link.depth else 0)
                assert not link.token_hash or digest in table.linked_blocks(link.token_hash)
                deepest = link.depth


@pytest.mark.property
@given(families())
def test_no_link_credits_tokens_that_prompts_do_not_share_and_all_come_to_rest(prompts: list[Prompt]) -> None:
    table = table_of()
    for number, prompt in enumerate(prompts):
        prompt.learned_by(table)
        check(table, prompts[: number + 1])
    depths = {digest: link.depth for digest, link in table.items()}
    for prompt in prompts:  # nothing is learned from what is known
        assert not prompt.learned_by(table)
    assert {digest: link.depth for digest, link in table.items()} == depths


@pytest.mark.property
@given(families(), st.integers(1, 40), st.integers(1, 200))
def test_within_bounds_what_is_left_is_whole_from_the_start_and_right(
    prompts: list[Prompt], most: int, most_owns: int
) -> None:
    table = table_of(most, most_owns)
    for prompt in prompts:
        prompt.learned_by(table)
        assert len(table) <= most
        for digest, _ in table.items():
            assert table.chain(digest)[-1] == digest
        linked = table.linked_count(prompt.hashes)
        assert all((digest in table) == (index < linked) for index, digest in enumerate(prompt.hashes))
        check(table, [prompt])


def test_a_plain_prompt_is_linked_nearly_as_deep_as_it_is() -> None:
    table, prompt = table_of(), Prompt(conversation("the quick brown fox jumps " * 40))
    assert set(prompt.learned_by(table)) == set(prompt.hashes)
    middle = table.get(prompt.hashes[len(prompt.hashes) // 2])
    last = table.get(prompt.hashes[-1])
    assert middle is not None
    assert last is not None
    assert 0.4 * len(prompt.owns) < middle.depth <= 0.52 * len(prompt.owns)
    assert 0.9 * len(prompt.owns) < last.depth <= len(prompt.owns)


def test_an_estimate_is_neither_deeper_nor_shallower_than_evenly_spread_tokens() -> None:
    """Engines evict the end of a prompt first: text beyond a shallow link would count as cached."""
    ends, owns = range(50, 1_001, 50), list(range(1, 251))
    links = estimate_links(ends, ends, owns, size=1_000, tokens=1_000, block_size=4)
    assert list(links.depths) == [end // 4 for end in ends]
    assert list(estimate_links([1], [0], [], size=0, tokens=0, block_size=4).depths) == [0]


def test_a_contradiction_lowers_to_what_both_share() -> None:
    table = table_of()
    first = Prompt(conversation("a" * 8, "é" * 200))  # escapes: few tokens for many bytes at the end
    other = Prompt(conversation("a" * 8, "é" * 20 + "other text that goes on " * 20))
    first.learned_by(table)
    shared_bytes = common_prefix(first.hashes, other.hashes)
    other.learned_by(table)
    shared = common_prefix(first.owns, other.owns)
    for digest in first.hashes[:shared_bytes]:
        assert table.get(digest).depth <= shared


def test_a_template_that_begins_with_the_end_credits_nothing_that_differs() -> None:
    table = table_of()
    prompt, other = (Prompt(conversation("the same words " * 30, end), last_first) for end in ("abc", "xyz"))
    prompt.learned_by(table)
    other.learned_by(table)
    assert table.get(prompt.hashes[10]).depth == 0
    assert table.lowered_links > 0


def test_a_conversation_keeps_one_array() -> None:
    table = table_of()
    turns = [f"words of turn {number} " * 20 for number in range(12)]
    for count in range(1, len(turns) + 1):
        Prompt(conversation(*turns[:count])).learned_by(table)
    longest = len(Prompt(conversation(*turns)).owns)
    assert table.token_hash_count < 3 * longest  # blocks that hold the end of a turn's text stay with that turn


def test_what_is_known_exactly_is_linked_exactly() -> None:
    table = table_of()
    owns = block_hashes(START, list(range(40)), BLOCK)
    table.learn(PromptLinks((1, 2), owns, (9 // BLOCK, 40 // BLOCK), BLOCK))
    assert [link.depth for _, link in sorted(table.items())] == [2, 10]


def test_what_was_learned_can_be_forgotten() -> None:
    table, prompt = table_of(), Prompt(conversation("words " * 50))
    prompt.learned_by(table)
    table.clear()
    assert len(table) == table.token_hash_count == 0
    assert table.linked_count(prompt.hashes) == 0
    assert table.linked_blocks(prompt.owns[3]) == ()


def test_equal_tokens_of_every_prompt_make_no_prompt_slower_to_learn() -> None:
    """An engine may answer every prompt with the same tokens."""
    table = LinkTable(max_links=20_000, max_token_hashes=1_000_000)
    begun = time.process_time()
    for number in range(0, 60_000, 200):
        hashes = range(number + 1, number + 201)
        table.learn(PromptLinks(hashes, [7], [1] * 200, BLOCK))
    assert time.process_time() - begun < 10.0  # some 0.2 s; it was 60 s
    assert sorted(table.linked_blocks(7)) == list(range(40_001, 60_001))
    table.clear()
    assert not table.linked_blocks(7)


def test_forged_links_that_form_a_circle_have_no_chain() -> None:
    table = LinkTable(max_links=2, max_token_hashes=100)
    for hashes in ([1, 2], [2], [3], [2, 1]):  # block 1 is dropped, then follows the block that followed it
        table.learn(PromptLinks(hashes, [7, 8], [1] * len(hashes), 16))
    assert set(dict(table.items())) == {1, 2}
    assert table.chain(1) == table.chain(2) == []
    table.learn(PromptLinks([4, 5], [7, 8], [1, 2], 16))
    assert table.chain(5) == [4, 5]
