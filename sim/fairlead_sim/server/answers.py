"""One HTTP answer made of one or more choices; each choice is a sequence in a scheduler core and a script of what it says.

The engine starts an answer, the driver feeds its choices, and the answer tells the engine when it is settled: finished, failed,
aborted, or left by its client. Formats (chat, completions, …) and delivery (whole or stream) are the subclasses' business.
"""

from typing import Protocol

from fairlead_sim.engine import Sequence
from fairlead_sim.server.asks import Ask, Prompt
from fairlead_sim.server.connection import Reply
from fairlead_sim.server.problems import ApiProblem
from fairlead_sim.server.scripts import Script
from fairlead_sim.tokenizer import Tokenizer

ABORT = "abort"


class Host(Protocol):
    """The engine, as an answer sees it."""

    tokenizer: Tokenizer
    fingerprint: str
    block_tokens: int
    details: bool

    def drop(self, choice: "Choice") -> None:
        """Take the choice's sequence out of its core."""
        ...

    def settled(self, answer: "Answer", outcome: str) -> None:
        """``outcome``: finished, aborted, failed or gone."""
        ...

    def stamp(self) -> int:
        """Unix seconds."""
        ...

    def handed_over(self, answer: "Answer") -> dict[str, object] | None:
        """What the client must tell another engine so that it finds this prompt's KV; None = nothing is kept for it."""
        ...


class Choice:
    """One sequence of an answer. ``count`` tokens were delivered; ``reason`` is set when it is over."""

    __slots__ = ("answer", "count", "index", "prompt", "rank", "reason", "script", "sequence")

    def __init__(self, answer: "Answer", index: int, prompt: Prompt, script: Script, sequence: Sequence) -> None:
        self.answer = answer
        self.index = index
        self.prompt = prompt
        self.script = script
        self.sequence = sequence
        self.rank = 0
        self.count = 0
        self.reason: str | None = None

    def token(self, last: bool) -> None:
        """One more token."""
        self.count += 1
        if last:
            self.reason = self.script.reason
            self.answer.choice_over(self)

    def ended(self, reason: str) -> None:
        """Over without a token."""
        self.reason = reason
        self.answer.choice_over(self)

    @property
    def ending(self) -> str:
        """Why it ends if it is let."""
        return self.script.reason

    @property
    def stop_reason(self) -> str | int | None:
        """The stop string or token that ended it."""
        return self.script.stop_reason if self.reason == "stop" else None

    @property
    def text(self) -> str:
        """What the client sees of it, so far or in the end."""
        return self.script.text[: self.script.said(self.count)].decode()

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self.script.ids[: self.count]

    @property
    def created_cache_tokens(self) -> int:
        """Prompt tokens that this sequence added to the cache."""
        block = self.answer.host.block_tokens
        full = self.sequence.prompt_tokens // block * block
        return max(0, full - self.sequence.cached_tokens)


class Answer:
    """The base of all answers; ``id`` is the id in the body."""

    id_prefix = "cmpl-"
    choice_kind = Choice

    def __init__(self, host: Host, ask: Ask, reply: Reply) -> None:
        self.host = host
        self.ask = ask
        self.reply = reply
        self.id = self.id_prefix + ask.request_id
        self.created = host.stamp()
        self.choices: list[Choice] = []
        self.cut_after: int | None = None  # failure injection: tokens after which the connection breaks
        self._over = 0
        reply.on_gone = self._gone

    def open(self) -> None:
        """Before admission: what goes out even when the queue is full."""

    def choice_over(self, choice: Choice) -> None:
        """One of the choices is complete."""
        self._over += 1
        if self._over == len(self.choices):
            aborted = any(each.reason == ABORT for each in self.choices)
            self.complete()
            self.host.settled(self, "aborted" if aborted else "finished")

    def complete(self) -> None:
        """All choices are over: send the rest."""
        raise AssertionError("a format completes its answers")

    def abort(self) -> None:
        """End every choice that runs, as the engine does on abort: reason ``abort`` and a proper end."""
        for choice in self.choices:
            if choice.reason is None:
                self.host.drop(choice)
                choice.ended(ABORT)

    def fail(self, problem: ApiProblem) -> None:
        """End with an error: plain, or as an event in a stream."""
        self._release()
        self.reply.fail(problem)
        self.host.settled(self, "failed")

    def cut(self) -> None:
        """Break the connection in mid-answer."""
        self.reply.cut()

    def _gone(self) -> None:
        self._release()
        self.host.settled(self, "gone")

    def _release(self) -> None:
        for choice in self.choices:
            if choice.reason is None:
                self.host.drop(choice)

    # What formats need ---------------------------------------------------------------------------------------------------

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(prompt.tokens) for prompt in self.ask.prompts)

    @property
    def completion_tokens(self) -> int:
        """Of all choices, so far."""
        return sum(choice.count for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache; with several prompts those of the last."""
        told = self.ask.reported_cached_tokens
        if told is not None:
            return told
        return self.choices[-1].sequence.cached_tokens

    @property
    def created_cache_tokens(self) -> int:
        """Prompt tokens added to the cache."""
        return self.choices[-1].created_cache_tokens

    def usage(self, created: int | None) -> dict[str, object]:
        """The usage object of a whole answer."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        details = {"cached_tokens": self.cached_tokens, "created_cache_tokens": created, "multimodal_tokens": None}
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": details if self.host.details else None,
            "completion_tokens_details": None,
        }
