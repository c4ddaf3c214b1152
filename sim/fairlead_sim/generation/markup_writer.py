"""Replies with markup of their own: reasoning first, and tool calls at the end of some.

A reply with reasoning opens with ``<think>``. Words of one token and more follow, and now and then
a character of three tokens. Then come ``</think>`` and more words. A share of the replies to
requests with tools ends in one call, or in two.

A reply continues from any token. The answer so far stands in the prompt, behind the last generation
mark of the chat template. Its tokens say what is open: a mark, a character, the reasoning or a
call. The writer finishes that, and goes on. A greedy reply draws each number from all tokens before
it, so a continued one is the unbroken one.

A required text stands behind the reasoning. A reply that continues begins it again, as vLLM's
grammars do: they know nothing of the prompt.

Token ids are handled as strings of one character each, for their search.
"""

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from random import Random
from typing import Any, Final, Protocol

from xxhash import xxh3_64_intdigest

from fairlead_sim.engine.block_pool import chain_key, chain_root
from fairlead_sim.engine.chat_template import CALL_END, CALL_START, THINK_END, THINK_START, tool_call_text
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.generation.reply_script import MAX_NATURAL_TOKENS, ReplyLimits, ReplyScript, sample_value, script_of

REASONING_TOKENS: Final = 40
"""The mean number of tokens in reasoning, times the length factor of answers."""
CONTENT_TOKENS: Final = 60
ARGUMENT_VARIANTS: Final = 8
"""Sets of arguments that a tool may be called with."""
_LONG_CHARACTER: Final = "€"


class Draws(Protocol):
    """The numbers that a reply is drawn from."""

    def number(self) -> int:
        """Returns 64 bits."""

    def append(self, token: int) -> None:
        """Notes a token of the reply."""


class SeededDraws:
    """The numbers of a sampled reply."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def number(self) -> int:
        return self._random.getrandbits(64)

    def append(self, token: int) -> None:
        pass


class ChainedDraws:
    """The numbers of a greedy reply: each follows from all tokens before it.

    root: the key before the first block of the prompt.
    """

    def __init__(self, root: int, tokens: Sequence[int], block_tokens: int, seed: int) -> None:
        self._block_tokens = block_tokens
        self._seed = seed
        self._key = root
        self._tail = array("I")
        for token in tokens:
            self.append(token)

    def number(self) -> int:
        return xxh3_64_intdigest(self._tail.tobytes(), self._key ^ self._seed)

    def append(self, token: int) -> None:
        self._tail.append(token)
        if len(self._tail) == self._block_tokens:
            self._key, self._tail = chain_key(self._key, self._tail), array("I")


def greedy_draws(
    *, salt: str | None, adapter: str | None, block_tokens: int, seed: int
) -> Callable[[Sequence[int]], ChainedDraws]:
    """Returns a function that returns the numbers behind the tokens of a prompt."""
    root = chain_root(salt=salt, adapter=adapter)
    return lambda tokens: ChainedDraws(root, tokens, block_tokens, seed)


@dataclass(frozen=True, slots=True)
class MarkupPlan:
    """The markup that a reply may have.

    - reasons: it begins with reasoning.
    - tools: it may end in calls of these.
    - call_share: of the replies that end in calls.
    - may_end: it may end before its limit.
    """

    reasons: bool
    tools: Sequence[dict[str, Any]]
    call_share: float
    may_end: bool


class _Stage(Enum):
    REASONING = auto()
    CONTENT = auto()
    CALL = auto()  # a call begins with the next token
    CALLED = auto()
    DONE = auto()


class MarkupWriter:
    """The writer of one reply.

    - prompt: with the answer so far.
    - draws: returns the numbers behind some tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        plan: MarkupPlan,
        limits: ReplyLimits,
        prompt: Sequence[int],
        draws: Callable[[Sequence[int]], Draws],
    ) -> None:
        self._tokenizer = tokenizer
        self._plan = plan
        self._limits = limits
        self._prompt = prompt
        self._draws_behind = draws
        marks = (THINK_START, THINK_END, CALL_START, CALL_END, "\n", _LONG_CHARACTER)
        marks_of_ids = [_string(tokenizer.encode(mark)) for mark in marks]
        self._think, self._think_end, self._call, self._call_end, self._line, self._character = marks_of_ids
        self._answer = _answer_so_far(tokenizer, prompt)
        self._queue: deque[int] = deque()
        self._has_reasoned = len(self._answer) > len(self._think)
        self._calls = 0
        self._stage = self._resume()

    def write(self) -> ReplyScript:
        """Returns the rest of the reply."""
        limits, draws = self._limits, self._draws_behind(self._prompt)
        ids: list[int] = []
        while len(ids) < limits.max_tokens:
            if not self._queue:
                if self._stage is _Stage.DONE:
                    break
                self._advance(draws.number(), len(ids))
                continue
            token = self._queue.popleft()
            ids.append(token)
            draws.append(token)
        ends_itself = self._stage is _Stage.DONE and not self._queue
        return script_of(self._tokenizer, ids, limits.max_tokens, ends_itself=ends_itself, opening=self._opening())

    def _advance(self, number: int, count: int) -> None:
        """Queues the next tokens, or changes the stage."""
        factor = self._limits.length_factor
        if self._stage is _Stage.REASONING:
            if self._has_reasoned and _is_drawn(number, REASONING_TOKENS * factor):
                self._queue_ids(self._think_end)
                self._stage = self._behind_reasoning()
            else:
                self._has_reasoned = True
                self._queue_piece(number)
        elif self._stage is _Stage.CONTENT:
            is_long = len(self._answer) + count >= MAX_NATURAL_TOKENS
            if not self._plan.may_end or count < self._limits.min_tokens:
                self._queue_piece(number)
            elif is_long or _is_drawn(number, CONTENT_TOKENS * factor):
                calls = self._plan.tools and (number >> 40) % 1_000 < 1_000 * self._plan.call_share
                self._stage = _Stage.CALL if calls else _Stage.DONE
            else:
                self._queue_piece(number)
        elif self._stage is _Stage.CALL:
            self._queue_ids(self._call_of(number, ""))
            self._calls += 1
            self._stage = _Stage.CALLED
        elif self._calls == 1 and (number >> 8) % 3 == 0:
            self._queue_ids(self._line)
            self._stage = _Stage.CALL
        else:
            self._stage = _Stage.DONE

    def _queue_piece(self, number: int) -> None:
        """Queues a word, more of the last word, or a character of several tokens."""
        kind = (number >> 20) % 16
        if kind == 0:
            self._queue_ids(self._character)
        elif kind < 6:
            self._queue.append(self._tokenizer.joined_token(number & 0xFFFF))
        else:
            self._queue.append(self._tokenizer.word_token(number & 0xFFFF))

    def _queue_ids(self, ids: str) -> None:
        self._queue.extend(map(ord, ids))

    def _behind_reasoning(self) -> _Stage:
        """Returns the stage behind the reasoning; queues a required text."""
        if self._limits.forced_text is None:
            return _Stage.CONTENT
        self._queue.extend(self._tokenizer.encode(self._limits.forced_text))
        return _Stage.DONE

    def _resume(self) -> _Stage:
        """Returns the stage that the answer so far is in; queues what it has begun."""
        answer, content = self._answer, self._answer
        if self._plan.reasons:
            if self._think.startswith(answer):
                self._queue_ids(self._think[len(answer) :])
                return _Stage.REASONING
            if answer.startswith(self._think):
                _, is_ended, content = answer.partition(self._think_end)
                if not is_ended:
                    return self._resume_reasoning()
        if self._limits.forced_text is not None:
            return self._behind_reasoning()
        *calls, begun = content.split(self._call_end)
        self._calls = len(calls)
        if calls and begun in ("", self._line):
            return _Stage.CALL if begun else _Stage.CALLED
        at = begun.find(self._call)
        begun = begun[at if at >= 0 else len(begun) - _overlap(begun, self._call) :]
        if not begun or not self._plan.tools:
            self._queue_rest_of_character()
            return _Stage.CONTENT
        self._calls += 1
        number = self._draws_behind(self._prompt[: len(self._prompt) - len(begun)]).number()
        self._queue_ids(self._call_of(number, begun)[len(begun) :])
        return _Stage.CALLED

    def _resume_reasoning(self) -> _Stage:
        begun = _overlap(self._answer, self._think_end)
        if not begun:
            self._queue_rest_of_character()
            return _Stage.REASONING
        self._queue_ids(self._think_end[begun:])
        return self._behind_reasoning()

    def _queue_rest_of_character(self) -> None:
        begun = _overlap(self._answer, self._character)
        self._queue_ids(self._character[begun:] if begun else "")

    def _call_of(self, number: int, begun: str) -> str:
        """Returns the drawn call, or the next one that begins as the given tokens do.

        Returns these tokens and the end of a call if no call begins so.
        """
        tools, first = self._plan.tools, number >> 12
        for step in range(len(tools) * ARGUMENT_VARIANTS):
            variant, place = divmod((first + step) % (len(tools) * ARGUMENT_VARIANTS), len(tools))
            call = _string(self._tokenizer.encode(_call_text(tools[place]["function"], variant)))
            if call.startswith(begun):
                return call
        return begun + self._call_end

    def _opening(self) -> str:
        """Returns the marks of reasoning that the answer so far has left open."""
        answer = self._answer
        if not self._plan.reasons or self._think_end in answer:
            return ""
        if not answer.startswith(self._think):
            return (
                THINK_START[: len(self._tokenizer.decode(map(ord, answer)))] if self._think.startswith(answer) else ""
            )
        begun = self._think_end[: _overlap(answer, self._think_end)]
        return THINK_START + self._tokenizer.decode(map(ord, begun))


def _call_text(function: dict[str, Any], variant: int) -> str:
    schema = function.get("parameters")
    arguments = sample_value({"type": "object"} | (schema if isinstance(schema, dict) else {}), variant)
    return tool_call_text(function["name"], arguments if isinstance(arguments, dict) else {})


def _answer_so_far(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """Returns the tokens behind the last generation mark; none if a turn ends behind it."""
    ids = _string(prompt)
    mark = _string([tokenizer.assistant, *tokenizer.encode("\n")])
    _, is_marked, answer = ids.rpartition(mark)
    return "" if not is_marked or chr(tokenizer.eos) in answer else answer


def _string(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def _overlap(text: str, mark: str) -> int:
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


def _is_drawn(number: int, odds: float) -> bool:
    return (number >> 28) % max(2, round(odds)) == 0
