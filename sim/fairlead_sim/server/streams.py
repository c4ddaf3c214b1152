"""Answers as streams of server-sent events: one event a token, one HTTP chunk an event, one write a step.

Nearly every token is four bytes of text and changes nothing else, so a choice's event is built once with a marker in the
text's place and cut there; delivering a token is then joining three byte strings. Everything rarer (the first and last event,
token ids, log-probabilities, continuous usage, held-back text) takes the long way through ``event``.
"""

import msgspec

from fairlead_sim.engine import Sequence
from fairlead_sim.server.answers import Answer, Choice, Host
from fairlead_sim.server.asks import Ask, Prompt
from fairlead_sim.server.connection import Reply
from fairlead_sim.server.heads import EVENTS, chunk
from fairlead_sim.server.scripts import PIECE, Script

DONE = chunk(b"data: [DONE]\n\n")
_MARK = b"\0" * PIECE  # cannot occur in JSON text


def quoted(value: object) -> bytes:
    """JSON text of a value."""
    return msgspec.json.encode(value)


class StreamChoice(Choice):
    """A choice whose tokens leave at once."""

    __slots__ = ("_after", "_before", "_fast", "_shown", "_text", "_write")

    answer: "StreamAnswer"

    def __init__(self, answer: Answer, index: int, prompt: Prompt, script: Script, sequence: Sequence) -> None:
        super().__init__(answer, index, prompt, script, sequence)
        assert isinstance(answer, StreamAnswer)
        self._write = answer.reply.write
        self._text = script.text
        self._shown = 0
        self._fast = answer.uniform and script.even
        self._before, self._after = b"", b""
        if self._fast:
            event = chunk(answer.frame(answer.event(self, _MARK, [], None)))
            self._before, self._after = event.split(_MARK)

    def token(self, last: bool) -> None:
        count = self.count
        self.count = count + 1
        if count and not last and self._fast:
            at = count * PIECE
            self._shown = at + PIECE
            self._write(self._before + self._text[at : at + PIECE] + self._after)
        else:
            self._rare(last)

    def ended(self, reason: str) -> None:
        self.reason = reason
        self._out([])

    def _rare(self, last: bool) -> None:
        if self.answer.cut_after is not None and self.count > self.answer.cut_after:
            self.answer.cut()
            return
        self.reason = self.script.reason if last else None
        self._out(self.script.ids[self.count - 1 : self.count])

    def _news(self) -> bytes:
        """The text since the last event, fit for JSON; an abort lets go of what was held back."""
        aborted = self.reason is not None and self.reason != self.script.reason
        shown = self._shown
        self._shown = self.script.said(self.count) if aborted else self.script.seen(self.count)
        news = self._text[shown : self._shown]
        return news if self.script.ends is None else quoted(news.decode())[1:-1]

    def _out(self, ids: list[int]) -> None:
        """Write an event, behind the opening ones if it is the first, ahead of the closing ones if it is the last."""
        answer = self.answer
        opening = b"" if answer.begun else answer.opening()
        data = opening + chunk(answer.frame(answer.event(self, self._news(), ids, self.reason)))
        if self.reason is None:
            self._write(data)
        else:
            answer.tail = data
            answer.choice_over(self)
            if answer.tail:
                self._write(answer.tail)
                answer.tail = b""


class StreamAnswer(Answer):
    """The base of the streaming formats. ``tail``: bytes that wait for the end of the answer, if it is now."""

    choice_kind = StreamChoice

    def __init__(self, host: Host, ask: Ask, reply: Reply) -> None:
        super().__init__(host, ask, reply)
        self.begun = False
        self.tail = b""
        self.uniform = ask.logprobs is None and not ask.return_token_ids and not ask.continuous_usage

    def open(self) -> None:
        if self.cut_after is not None:
            self.uniform = False
        self.reply.start(EVENTS)

    def opening(self) -> bytes:
        """Chunks ahead of the very first token's event."""
        self.begun = True
        return b""

    def frame(self, event: bytes) -> bytes:
        """An event's JSON as a server-sent event."""
        return b"data: %b\n\n" % event

    def event(self, choice: Choice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        """The JSON of one event; ``text`` is already fit for JSON."""
        raise AssertionError("a format writes its events")

    def closing(self) -> bytes:
        """Chunks behind the last token's event."""
        return DONE

    def complete(self) -> None:
        self.reply.finish(self.tail + self.closing())
        self.tail = b""

    # Shared by the OpenAI formats ------------------------------------------------------------------------------------------

    def running_usage(self, choice: Choice, *, details: bool) -> bytes:
        """``,"usage":{…}`` of one event when usage is wanted continuously."""
        if not self.ask.continuous_usage:
            return b""
        prompt, count = len(choice.prompt.tokens), choice.count
        more = b',"completion_tokens_details":null' if details else b""
        return b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
            prompt,
            prompt + count,
            count,
            more,
        )

    def final_usage(self, *, created: bool) -> bytes:
        """``"usage":{…}`` of the event that only carries usage."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        details = b""
        if self.host.details:
            more = b',"created_cache_tokens":%d' % self.created_cache_tokens if created else b""
            details = b',"prompt_tokens_details":{"cached_tokens":%d%b}' % (self.cached_tokens, more)
        return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
            prompt,
            prompt + completion,
            completion,
            details,
        )

    def mark(self, reason: str | None) -> bytes:
        """``,"system_fingerprint":…`` where it belongs: a choice's last event, unless a usage event follows."""
        if reason is None or self.ask.include_usage:
            return b""
        return b',"system_fingerprint":%b' % quoted(self.host.fingerprint)
