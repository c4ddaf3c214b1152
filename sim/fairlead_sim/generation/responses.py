"""The answer to one generation request, made of choices.

Each choice is a sequence in a scheduler core and a script. The engine starts the response, the
driver delivers tokens to its choices, and the response reports its end: finished, failed, aborted
or gone. Subclasses implement formats (chat, completions, …) and delivery (whole or stream).
"""

from typing import Protocol

from fairlead_sim.engine.chat_template import THINK_END, THINK_START
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.generation.reply_parser import ParsedReply, parse_reply
from fairlead_sim.generation.reply_script import ReplyScript
from fairlead_sim.generation.requests import GenerationRequest, TokenizedPrompt
from fairlead_sim.http.connection import ResponseWriter
from fairlead_sim.http.errors import ApiError

ABORT_REASON = "abort"


class ResponseHost(Protocol):
    """The engine, as a response sees it."""

    tokenizer: Tokenizer
    fingerprint: str
    block_tokens: int
    reports_details: bool
    parses_reasoning: bool
    parses_tools: bool

    def new_id(self) -> str: ...

    def drop_choice(self, choice: "ResponseChoice") -> None:
        """Removes the choice's sequence from its core."""

    def on_response_ended(self, response: "GenerationResponse", outcome: str) -> None:
        """Notes the end of a response.

        outcome: ``finished``, ``aborted``, ``failed``, or ``gone`` after a client disconnect.
        """

    def unix_seconds(self) -> int: ...

    def transfer_params(self, response: "GenerationResponse") -> dict[str, object] | None:
        """Leases the prompt's blocks if the request demands it.

        Returns what the client must pass to another engine for the KV; None if there is nothing.
        """


class ResponseChoice:
    """One choice of a response.

    - delivered: delivered tokens.
    - reason: the finish reason; None while it runs.
    """

    __slots__ = ("delivered", "index", "prompt", "rank", "reason", "response", "script", "sequence")

    def __init__(
        self,
        response: "GenerationResponse",
        index: int,
        prompt: TokenizedPrompt,
        script: ReplyScript,
        sequence: EngineSequence,
    ) -> None:
        self.response = response
        self.index = index
        self.prompt = prompt
        self.script = script
        self.sequence = sequence
        self.rank = 0
        self.delivered = 0
        self.reason: str | None = None

    def on_token(self, last: bool) -> None:
        """Notes one more token."""
        self.delivered += 1
        if last:
            self.reason = self.script.reason
            self.response.on_choice_ended(self)

    def on_ended(self, reason: str) -> None:
        self.reason = reason
        self.response.on_choice_ended(self)

    @property
    def end_reason(self) -> str:
        return self.script.reason

    @property
    def stop_reason(self) -> str | int | None:
        """Returns the stop string or token that ended the choice; None if none did."""
        return self.script.stop_reason if self.reason == "stop" else None

    @property
    def text(self) -> str:
        return self.script.text[: self.script.text_bytes(self.delivered)].decode()

    @property
    def is_parsed(self) -> bool:
        markup = self.response.request.markup
        return self.script.ends is not None and (markup.reasoning or markup.calls)

    @property
    def parsed_reply(self) -> ParsedReply:
        """Returns the parts of the text so far."""
        if not self.is_parsed:
            return ParsedReply(None, self.text, [])
        return parse_reply(self.script.opening + self.text, self.response.request.markup)

    @property
    def reasoning_tokens(self) -> int:
        """Returns the number of tokens between the marks of reasoning, so far."""
        script = self.script
        text = script.opening.encode() + script.text
        if not (self.is_parsed and self.response.request.markup.reasoning and text.startswith(THINK_START.encode())):
            return 0
        end = text.find(THINK_END.encode())
        ends = [len(script.opening) + at for at in (script.ends or [])[: self.delivered]]
        return sum(len(THINK_START) < at and (end < 0 or at <= end) for at in ends)

    @property
    def ids(self) -> list[int]:
        """Returns the tokens so far."""
        return self.script.ids[: self.delivered]

    @property
    def created_cache_tokens(self) -> int:
        """Returns the prompt tokens that this sequence added to the cache."""
        block = self.response.host.block_tokens
        full = self.sequence.prompt_tokens // block * block
        return max(0, full - self.sequence.cached_tokens)


class GenerationResponse:
    """The base of all responses; ``id`` is the id in the body."""

    id_prefix = "cmpl-"
    choice_kind = ResponseChoice

    def __init__(self, host: ResponseHost, request: GenerationRequest, writer: ResponseWriter) -> None:
        self.host = host
        self.request = request
        self.writer = writer
        self.id = self.id_prefix + request.request_id
        self.created = host.unix_seconds()
        self.choices: list[ResponseChoice] = []
        self.cut_after: int | None = None  # fault injection: tokens after which the connection breaks
        self._ended_choices = 0
        writer.on_gone = self._on_client_gone

    def start(self) -> None:
        """Sends what precedes admission, even if the queue is full."""

    def on_choice_ended(self, choice: ResponseChoice) -> None:
        """Finishes the response after its last choice."""
        self._ended_choices += 1
        if self._ended_choices == len(self.choices):
            aborted = any(sibling.reason == ABORT_REASON for sibling in self.choices)
            self.finish()
            self.host.on_response_ended(self, "aborted" if aborted else "finished")

    def finish(self) -> None:
        raise AssertionError("a format completes its answers")

    def abort(self) -> None:
        """Ends every running choice with the finish reason ``abort``."""
        for choice in self.choices:
            if choice.reason is None:
                self.host.drop_choice(choice)
                choice.on_ended(ABORT_REASON)

    def fail(self, problem: ApiError) -> None:
        """Ends the response with an error."""
        self._drop_running()
        self.send_error(problem)
        self.host.on_response_ended(self, "failed")

    def send_error(self, problem: ApiError) -> None:
        self.writer.fail(problem)

    def cut(self) -> None:
        self.writer.drop_connection()

    def _on_client_gone(self) -> None:
        self._drop_running()
        self.host.on_response_ended(self, "gone")

    def _drop_running(self) -> None:
        for choice in self.choices:
            if choice.reason is None:
                self.host.drop_choice(choice)

    # Fields of all formats ---------------------------------------------------------------------------------------------------

    @property
    def prompt_tokens(self) -> int:
        """Returns the number of tokens of all prompts, each prompt counted once."""
        return sum(len(prompt.tokens) for prompt in self.request.prompts)

    @property
    def completion_tokens(self) -> int:
        """Returns the number of tokens of all choices so far."""
        return sum(choice.delivered for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Returns the number of cached prompt tokens of the last prompt.

        A number that a KV transfer reports replaces it.
        """
        reported = self.request.reported_cached_tokens
        if reported is not None:
            return reported
        return self.choices[-1].sequence.cached_tokens

    @property
    def created_cache_tokens(self) -> int:
        """Returns the prompt tokens that the last choice added to the cache."""
        return self.choices[-1].created_cache_tokens

    @property
    def reasoning_tokens(self) -> int:
        """Returns the number of reasoning tokens of all choices so far."""
        return sum(choice.reasoning_tokens for choice in self.choices)

    def usage(self, created: int | None) -> dict[str, object]:
        """Returns the usage object of a whole response.

        created: cache tokens, which only a chat reports, together with reasoning.
        """
        reasons = created is not None and self.host.parses_reasoning
        prompt, completion = self.prompt_tokens, self.completion_tokens
        details = {"cached_tokens": self.cached_tokens, "created_cache_tokens": created, "multimodal_tokens": None}
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": details if self.host.reports_details else None,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens} if reasons else None,
        }
