"""``/v1/messages``: the Anthropic form of the same generation, with its own errors, usage and events."""

from typing import Any

from fairlead_sim.server import asks
from fairlead_sim.server.answers import Answer, Choice
from fairlead_sim.server.app import Call
from fairlead_sim.server.asks import Ask
from fairlead_sim.server.fields import Fields, json_body
from fairlead_sim.server.generating import fresh_id
from fairlead_sim.server.heads import chunk
from fairlead_sim.server.prompts import conversation
from fairlead_sim.server.streams import DONE, StreamAnswer, quoted

_STOPS = {"length": "max_tokens", "stop": "end_turn", "abort": "end_turn"}


def messages(call: Call) -> None:
    """Answer one turn."""
    engine = call.engine
    fields = Fields(json_body(call.request))
    ask = asks.common(fields, call.request, fresh_id(call))
    fields.required("max_tokens")
    ask.max_tokens = fields.integer("max_tokens")
    ask.stop = fields.strings("stop_sequences")
    turns = _turns(fields)
    fields.check()
    engine.models.resolve(ask)
    asks.sound(fields, ask)
    ask.prompts = [engine.frontend.chat(turns)]
    engine.begin(ask, MessageStream if ask.stream else WholeMessage, call.reply, call.fault)


def count_tokens(call: Call) -> None:
    """The prompt's length in tokens."""
    engine = call.engine
    fields = Fields(json_body(call.request))
    ask = Ask(model=fields.text("model") or "", request_id="")
    turns = _turns(fields)
    fields.check()
    engine.models.resolve(ask)
    call.reply.send(200, quoted({"input_tokens": len(engine.tokenizer.chat_tokens(turns))}))


def _turns(fields: Fields) -> list[dict[str, Any]]:
    turns = conversation(fields)
    system = fields.body.get("system")
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def _usage(answer: Answer) -> dict[str, int]:
    cached, created = answer.cached_tokens, answer.created_cache_tokens
    return {
        "input_tokens": answer.prompt_tokens - cached - created,
        "output_tokens": answer.completion_tokens,
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": cached,
    }


def _stop(choice: Choice) -> dict[str, object]:
    if isinstance(choice.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_reason}
    return {"stop_reason": _STOPS[choice.reason or "stop"]}


class WholeMessage(Answer):
    """One JSON object."""

    id_prefix = "chatcmpl-"

    def complete(self) -> None:
        choice = self.choices[0]
        body = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": choice.text}],
            "model": self.ask.model,
            **_stop(choice),
            "usage": _usage(self),
        }
        self.reply.send(200, quoted(body))


class MessageStream(StreamAnswer):
    """Named events around text deltas."""

    id_prefix = "chatcmpl-"

    def frame(self, event: bytes) -> bytes:
        return b"event: content_block_delta\ndata: %b\n\n" % event

    def opening(self) -> bytes:
        super().opening()
        message: dict[str, object] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.ask.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": 0},
        }
        block = {"type": "text", "text": ""}
        return _named("message_start", message=message) + _named("content_block_start", index=0, content_block=block)

    def event(self, choice: Choice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        return b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}' % text

    def closing(self) -> bytes:
        return (
            _named("content_block_stop", index=0)
            + _named("message_delta", delta=_stop(self.choices[0]), usage=_usage(self))
            + _named("message_stop")
            + DONE
        )


def _named(kind: str, **parts: object) -> bytes:
    return chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), quoted({"type": kind, **parts})))
