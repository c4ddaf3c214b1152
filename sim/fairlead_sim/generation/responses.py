"""One HTTP answer made of one or more choices; each choice is a sequence in a scheduler core and a script of what it says.

The engine starts an answer, the driver feeds its choices, and the answer tells the engine when it is settled: finished, failed,
aborted, or left by its client. Formats (chat, completions, …) and delivery (whole or stream) are the subclasses' business.
"""

from typing import Protocol

from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.generation.reply_script import ReplyScript
from fairlead_sim.generation.requests import GenerationRequest, TokenizedPrompt
from fairlead_sim.http.connection import ResponseWriter
from fairlead_sim.http.errors import ApiError

ABORT_REASON = "abort"


class ResponseHost(Protocol):
    """The engine, as an answer sees it."""

    tokenizer: Tokenizer
    fingerprint: str
    block_tokens: int
    reports_details: bool

    def drop_choice(self, choice: "ResponseChoice") -> None:
        """Take the choice's sequence out of its core."""
        ...

    def on_response_ended(self, answer: "GenerationResponse", outcome: str) -> None:
        """``outcome``: finished, aborted, failed or gone."""
        ...

    def unix_seconds(self) -> int:
        """Unix seconds."""
        ...

    def transfer_params(self, answer: "GenerationResponse") -> dict[str, object] | None:
        """What the client must tell another engine so that it finds this prompt's KV; None = nothing is kept for it."""
        ...


class ResponseChoice:
    """One sequence of an answer. ``count`` tokens were delivered; ``reason`` is set when it is over."""

    __slots__ = ("delivered", "index", "prompt", "rank", "reason", "response", "script", "sequence")

    def __init__(
        self,
        answer: "GenerationResponse",
        index: int,
        prompt: TokenizedPrompt,
        script: ReplyScript,
        sequence: EngineSequence,
    ) -> None:
        self.response = answer
        self.index = index
        self.prompt = prompt
        self.script = script
        self.sequence = sequence
        self.rank = 0
        self.delivered = 0
        self.reason: str | None = None

    def on_token(self, last: bool) -> None:
        """One more token."""
        self.delivered += 1
        if last:
            self.reason = self.script.reason
            self.response.on_choice_ended(self)

    def on_ended(self, reason: str) -> None:
        """Over without a token."""
        self.reason = reason
        self.response.on_choice_ended(self)

    @property
    def end_reason(self) -> str:
        """Why it ends if it is let."""
        return self.script.reason

    @property
    def stop_reason(self) -> str | int | None:
        """The stop string or token that ended it."""
        return self.script.stop_reason if self.reason == "stop" else None

    @property
    def text(self) -> str:
        """What the client sees of it, so far or in the end."""
        return self.script.text[: self.script.text_bytes(self.delivered)].decode()

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self.script.ids[: self.delivered]

    @property
    def created_cache_tokens(self) -> int:
        """Prompt tokens that this sequence added to the cache."""
        block = self.response.host.block_tokens
        full = self.sequence.prompt_tokens // block * block
        return max(0, full - self.sequence.cached_tokens)


class GenerationResponse:
    """The base of all answers; ``id`` is the id in the body."""

    id_prefix = "cmpl-"
    choice_kind = ResponseChoice

    def __init__(self, host: ResponseHost, request: GenerationRequest, writer: ResponseWriter) -> None:
        self.host = host
        self.request = request
        self.writer = writer
        self.id = self.id_prefix + request.request_id
        self.created = host.unix_seconds()
        self.choices: list[ResponseChoice] = []
        self.cut_after: int | None = None  # failure injection: tokens after which the connection breaks
        self._ended_choices = 0
        writer.on_gone = self._on_client_gone

    def start(self) -> None:
        """Before admission: what goes out even when the queue is full."""

    def on_choice_ended(self, choice: ResponseChoice) -> None:
        """One of the choices is complete."""
        self._ended_choices += 1
        if self._ended_choices == len(self.choices):
            aborted = any(sibling.reason == ABORT_REASON for sibling in self.choices)
            self.finish()
            self.host.on_response_ended(self, "aborted" if aborted else "finished")

    def finish(self) -> None:
        """All choices are over: send the rest."""
        raise AssertionError("a format completes its answers")

    def abort(self) -> None:
        """End every choice that runs, as the engine does on abort: reason ``abort`` and a proper end."""
        for choice in self.choices:
            if choice.reason is None:
                self.host.drop_choice(choice)
                choice.on_ended(ABORT_REASON)

    def fail(self, problem: ApiError) -> None:
        """End with an error: plain, or as an event in a stream."""
        self._drop_running()
        self.writer.fail(problem)
        self.host.on_response_ended(self, "failed")

    def cut(self) -> None:
        """Break the connection in mid-answer."""
        self.writer.drop_connection()

    def _on_client_gone(self) -> None:
        self._drop_running()
        self.host.on_response_ended(self, "gone")

    def _drop_running(self) -> None:
        for choice in self.choices:
            if choice.reason is None:
                self.host.drop_choice(choice)

    # What formats need ---------------------------------------------------------------------------------------------------

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(prompt.tokens) for prompt in self.request.prompts)

    @property
    def completion_tokens(self) -> int:
        """Of all choices, so far."""
        return sum(choice.delivered for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache; with several prompts those of the last."""
        reported = self.request.reported_cached_tokens
        if reported is not None:
            return reported
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
            "prompt_tokens_details": details if self.host.reports_details else None,
            "completion_tokens_details": None,
        }
