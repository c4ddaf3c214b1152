"""Responses as server-sent events: an event per token, a chunk per event, a write per step.

Nearly every token is four bytes of text and changes nothing else. A choice builds its event once
around markers and cuts it there; a token then joins a few byte strings. Its id, if the client wants
ids, always has five digits, so that all chunks have one length. First and last events,
log-probabilities, continuous usage and delayed text take the slow path ``token_event``.
"""

import msgspec

from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.generation.reply_parser import ReplyDelta, StreamedReply
from fairlead_sim.generation.reply_script import TOKEN_BYTES, ReplyScript
from fairlead_sim.generation.requests import GenerationRequest, TokenizedPrompt
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice, ResponseHost
from fairlead_sim.http.connection import EVENT_STREAM_TYPE, ResponseWriter, http_chunk

DONE_CHUNK = http_chunk(b"data: [DONE]\n\n")
_TEXT_MARKER = b"\0" * TOKEN_BYTES  # cannot occur in JSON text
_ID_MARKER = 10_000  # as many digits as the ids of words of three letters
_ID_FIELD = b'"token_ids":['


def json_bytes(value: object) -> bytes:
    return msgspec.json.encode(value)


class StreamingChoice(ResponseChoice):
    """A choice whose tokens are sent as they are generated."""

    __slots__ = (
        "_after",
        "_before",
        "_behind_id",
        "_has_ids",
        "_is_uniform",
        "_reply",
        "_shown_bytes",
        "_text",
        "_write",
    )

    response: "StreamingResponse"

    def __init__(
        self,
        response: GenerationResponse,
        index: int,
        prompt: TokenizedPrompt,
        script: ReplyScript,
        sequence: EngineSequence,
    ) -> None:
        super().__init__(response, index, prompt, script, sequence)
        assert isinstance(response, StreamingResponse)
        self._write = response.writer.write
        self._text = script.text
        self._shown_bytes = 0
        self._reply = StreamedReply(response.request.markup) if self.is_parsed else None
        self._is_uniform = response.is_uniform and script.is_even
        self._has_ids = response.has_token_ids
        self._before, self._after, self._behind_id = b"", b"", b""
        if self._is_uniform:
            ids = [_ID_MARKER] if self._has_ids else []
            self.delivered = 2  # the first event may have more
            event = http_chunk(response.frame_event(response.token_event(self, _TEXT_MARKER, ids, None)))
            self.delivered = 0
            self._before, self._after = event.split(_TEXT_MARKER)
            if self._has_ids:
                middle, _, self._behind_id = self._after.rpartition(_ID_FIELD + b"%d" % _ID_MARKER)
                self._after = middle + _ID_FIELD

    def on_token(self, last: bool) -> None:
        count = self.delivered
        self.delivered = count + 1
        if count and not last and self._is_uniform:
            at = count * TOKEN_BYTES
            self._shown_bytes = at + TOKEN_BYTES
            event = self._before + self._text[at : at + TOKEN_BYTES] + self._after
            self._write(event + b"%d" % self.script.ids[count] + self._behind_id if self._has_ids else event)
        else:
            self._write_slowly(last)

    def on_ended(self, reason: str) -> None:
        self.reason = reason
        self._write_event([])

    def _write_slowly(self, last: bool) -> None:
        if self.response.cut_after is not None and self.delivered > self.response.cut_after:
            self.response.cut()
            return
        self.reason = self.script.reason if last else None
        self._write_event(self.script.ids[self.delivered - 1 : self.delivered])

    def _new_deltas(self) -> list[ReplyDelta]:
        """Returns what the reply has since the last event; an abort releases delayed text."""
        aborted = self.reason is not None and self.reason != self.script.reason
        shown = self._shown_bytes
        self._shown_bytes = (
            self.script.text_bytes(self.delivered) if aborted else self.script.streamed_bytes(self.delivered)
        )
        if self._reply is not None:
            return self._reply.advance(self.script.opening + self._text[: self._shown_bytes].decode())
        return [ReplyDelta("content", self._text[shown : self._shown_bytes].decode())]

    def _write_event(self, ids: list[int]) -> None:
        """Writes one event of this choice.

        The opening events precede the first event, the closing ones follow the last.
        """
        response = self.response
        opening = b"" if response.has_begun else response.opening_events()
        data = opening + response.step_chunks(self, self._new_deltas(), ids, self.reason)
        if self.reason is None:
            self._write(data)
        else:
            response.pending = data
            response.on_choice_ended(self)
            if response.pending:
                self._write(response.pending)
                response.pending = b""


class StreamingResponse(GenerationResponse):
    """The base of the streaming formats.

    pending: the last event of a choice, until it is known whether the response ends with it.
    reports_token_ids: the events of the format may have token ids.
    """

    choice_kind = StreamingChoice
    reports_token_ids = False

    def __init__(self, host: ResponseHost, request: GenerationRequest, reply: ResponseWriter) -> None:
        super().__init__(host, request, reply)
        self.has_begun = False
        self.pending = b""
        self.is_uniform = request.logprobs is None and not request.continuous_usage
        self.has_token_ids = self.reports_token_ids and request.return_token_ids

    def start(self) -> None:
        if self.cut_after is not None:
            self.is_uniform = False
        self.writer.start(EVENT_STREAM_TYPE)

    def opening_events(self) -> bytes:
        self.has_begun = True
        return b""

    def frame_event(self, event: bytes) -> bytes:
        return b"data: %b\n\n" % event

    def step_chunks(
        self, choice: StreamingChoice, deltas: list[ReplyDelta], ids: list[int], reason: str | None
    ) -> bytes:
        text = json_bytes("".join(delta.text for delta in deltas))[1:-1]
        return http_chunk(self.frame_event(self.token_event(choice, text, ids, reason)))

    def token_event(self, choice: ResponseChoice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        raise AssertionError("a format writes its events")

    def closing_events(self) -> bytes:
        return DONE_CHUNK

    def finish(self) -> None:
        self.writer.finish(self.pending + self.closing_events())
        self.pending = b""

    # Shared by the OpenAI formats ------------------------------------------------------------------------------------------

    def running_usage(self, choice: ResponseChoice, *, details: bool) -> bytes:
        """Returns ``,"usage":{…}`` of one event; empty without continuous usage."""
        if not self.request.continuous_usage:
            return b""
        prompt, count = len(choice.prompt.tokens), choice.delivered
        extra = b',"completion_tokens_details":null' if details else b""
        if details and self.host.parses_reasoning:
            extra = b',"completion_tokens_details":{"reasoning_tokens":%d}' % choice.reasoning_tokens
        return b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
            prompt,
            prompt + count,
            count,
            extra,
        )

    def final_usage(self, *, created: bool) -> bytes:
        """Returns ``"usage":{…}`` of the event that only carries usage."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        details = b""
        if self.host.reports_details:
            extra = b',"created_cache_tokens":%d' % self.created_cache_tokens if created else b""
            details = b',"prompt_tokens_details":{"cached_tokens":%d%b}' % (self.cached_tokens, extra)
        if created and self.host.parses_reasoning:
            details += b',"completion_tokens_details":{"reasoning_tokens":%d}' % self.reasoning_tokens
        return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
            prompt,
            prompt + completion,
            completion,
            details,
        )

    def fingerprint_field(self, reason: str | None) -> bytes:
        """Returns ``,"system_fingerprint":…`` for a choice's last event, unless a usage event
        follows.
        """
        if reason is None or self.request.include_usage:
            return b""
        return b',"system_fingerprint":%b' % json_bytes(self.host.fingerprint)


class PartStream(StreamingResponse):
    """The base of the formats whose streams open and close each part of a reply."""

    part: ReplyDelta | None = None  # the delta that opened the part

    def step_chunks(
        self, choice: StreamingChoice, deltas: list[ReplyDelta], ids: list[int], reason: str | None
    ) -> bytes:
        chunks = b""
        for delta in deltas:
            if delta.number and self.request.markup.one_call:
                continue
            if delta.name is not None or (delta.text and (self.part is None or self.part.kind != delta.kind)):
                chunks += self.close_part() + self.open_part(delta)
                self.part = delta
            if delta.text:
                chunks += self.grow_part(delta)
        return chunks

    def open_part(self, delta: ReplyDelta) -> bytes:
        raise AssertionError("a format opens its parts")

    def grow_part(self, delta: ReplyDelta) -> bytes:
        raise AssertionError("a format writes its parts")

    def close_part(self) -> bytes:
        """Returns the chunks that close the open part; empty without one."""
        raise AssertionError("a format closes its parts")
