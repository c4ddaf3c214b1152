"""``/v1/messages``: Anthropic's form of generation, with its errors, usage and events."""

from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import requests
from fairlead_sim.generation.requests import GenerationRequest, parse_messages
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice
from fairlead_sim.generation.streaming import DONE_CHUNK, StreamingResponse, json_bytes
from fairlead_sim.http.connection import http_chunk
from fairlead_sim.http.fields import RequestFields, json_body

_STOPS = {"length": "max_tokens", "stop": "end_turn", "abort": "end_turn"}


def create_message(context: RequestContext) -> None:
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = requests.parse_common(fields, context.request, context.new_request_id())
    fields.require("max_tokens")
    generation_request.max_tokens = fields.integer("max_tokens")
    generation_request.stop = fields.strings("stop_sequences")
    turns = _conversation(fields)
    fields.check()
    engine.models.resolve(generation_request)
    requests.validate_sampling(fields, generation_request)
    generation_request.prompts = [engine.prompt_parser.from_chat(turns)]
    engine.begin(
        generation_request,
        AnthropicMessageStream if generation_request.stream else AnthropicMessage,
        context.writer,
        context.fault,
    )


def count_tokens(context: RequestContext) -> None:
    """Sends the length of the prompt in tokens."""
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = GenerationRequest(model=fields.text("model") or "", request_id="")
    turns = _conversation(fields)
    fields.check()
    engine.models.resolve(generation_request)
    context.writer.send(200, json_bytes({"input_tokens": len(engine.tokenizer.encode_chat(turns))}))


def _conversation(fields: RequestFields) -> list[dict[str, Any]]:
    turns = parse_messages(fields)
    system = fields.body.get("system")
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def _message_usage(response: GenerationResponse) -> dict[str, int]:
    cached, created = response.cached_tokens, response.created_cache_tokens
    return {
        "input_tokens": response.prompt_tokens - cached - created,
        "output_tokens": response.completion_tokens,
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": cached,
    }


def _stop_fields(choice: ResponseChoice) -> dict[str, object]:
    if isinstance(choice.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_reason}
    return {"stop_reason": _STOPS[choice.reason or "stop"]}


class AnthropicMessage(GenerationResponse):
    """The JSON object of one message."""

    id_prefix = "chatcmpl-"

    def finish(self) -> None:
        choice = self.choices[0]
        body = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": choice.text}],
            "model": self.request.model,
            **_stop_fields(choice),
            "usage": _message_usage(self),
        }
        self.writer.send(200, json_bytes(body))


class AnthropicMessageStream(StreamingResponse):
    """A stream of named events around text deltas."""

    id_prefix = "chatcmpl-"

    def frame_event(self, event: bytes) -> bytes:
        return b"event: content_block_delta\ndata: %b\n\n" % event

    def opening_events(self) -> bytes:
        super().opening_events()
        message: dict[str, object] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.request.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": 0},
        }
        block = {"type": "text", "text": ""}
        return _named_event("message_start", message=message) + _named_event(
            "content_block_start", index=0, content_block=block
        )

    def token_event(self, choice: ResponseChoice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        return b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}' % text

    def closing_events(self) -> bytes:
        return (
            _named_event("content_block_stop", index=0)
            + _named_event("message_delta", delta=_stop_fields(self.choices[0]), usage=_message_usage(self))
            + _named_event("message_stop")
            + DONE_CHUNK
        )


def _named_event(kind: str, **parts: object) -> bytes:
    return http_chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), json_bytes({"type": kind, **parts})))
