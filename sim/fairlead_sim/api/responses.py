"""``/v1/responses``: OpenAI's newest form of generation; nothing is stored."""

from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import reply_script, requests
from fairlead_sim.generation.requests import GenerationRequest, parse_messages
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice, ResponseHost
from fairlead_sim.generation.streaming import StreamingResponse, json_bytes
from fairlead_sim.http.connection import ResponseWriter, http_chunk
from fairlead_sim.http.fields import RequestFields, json_body


def create_response(context: RequestContext) -> None:
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = requests.parse_common(fields, context.request, context.new_request_id())
    generation_request.max_tokens = fields.integer("max_output_tokens")
    turns = _conversation(fields)
    text = fields.mapping("text")
    fields.check()
    form = text.get("format") if text is not None else None
    if isinstance(form, dict) and isinstance(form.get("schema"), dict):
        generation_request.forced_text = reply_script.parse_forced_text(
            RequestFields({"structured_outputs": {"json": form["schema"]}})
        )
    engine.models.resolve(generation_request)
    requests.validate_sampling(fields, generation_request)
    generation_request.prompts = [engine.prompt_parser.from_chat(turns)]
    response = ResponseObjectStream if generation_request.stream else ResponseObject
    engine.begin(generation_request, response, context.writer, context.fault)


def _conversation(fields: RequestFields) -> list[dict[str, Any]]:
    turn_input = fields.require("input")
    turns: list[dict[str, Any]] = []
    instructions = fields.text("instructions")
    if instructions is not None:
        turns.append({"role": "system", "content": instructions})
    if isinstance(turn_input, str):
        turns.append({"role": "user", "content": turn_input})
    elif isinstance(turn_input, list):
        inner = RequestFields({"messages": turn_input})
        turns += parse_messages(inner)
        fields.findings += inner.findings
    elif turn_input is not None:
        fields.add_wrong("string_type", "input", "Input should be a valid string", turn_input)
    return turns


def _response_object(
    response: GenerationResponse, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns the response object at any stage."""
    generation_request = response.request
    return {
        "id": response.id,
        "created_at": response.created,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": None,
        "model": generation_request.model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": generation_request.max_tokens,
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": status,
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": usage,
        "user": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def _response_usage(response: GenerationResponse) -> dict[str, Any]:
    prompt, completion = response.prompt_tokens, response.completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": response.cached_tokens,
            "cache_write_tokens": response.created_cache_tokens,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": completion,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": prompt + completion,
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _message_item(message_id: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    return {
        "id": message_id,
        "content": content,
        "role": "assistant",
        "status": status,
        "type": "message",
        "phase": None,
    }


def _finished_response(response: GenerationResponse, message_id: str) -> dict[str, Any]:
    choice = response.choices[0]
    status = {"length": "incomplete", "stop": "completed"}.get(choice.reason or "", "cancelled")
    message = _message_item(message_id, [_text_part(choice.text)], "completed")
    return _response_object(response, status, [message], _response_usage(response))


class ResponseObject(GenerationResponse):
    """The JSON object of one response."""

    id_prefix = "resp_"

    def finish(self) -> None:
        self.writer.send(200, json_bytes(_finished_response(self, _message_id(self))))


def _message_id(response: GenerationResponse) -> str:
    return "msg_" + response.request.request_id


class ResponseObjectStream(StreamingResponse):
    """A stream of numbered, named events around text deltas."""

    id_prefix = "resp_"

    def __init__(self, host: ResponseHost, generation_request: GenerationRequest, writer: ResponseWriter) -> None:
        super().__init__(host, generation_request, writer)
        self.is_uniform = False  # every event carries its number
        self._sent = 0
        self._message = _message_id(self)

    def frame_event(self, event: bytes) -> bytes:
        return b"event: response.output_text.delta\ndata: %b\n\n" % event

    def opening_events(self) -> bytes:
        super().opening_events()
        begun = _response_object(self, "in_progress", [], None)
        item = _message_item(self._message, [], "in_progress")
        return (
            self._named_event("response.created", response=begun)
            + self._named_event("response.in_progress", response=begun)
            + self._named_event("response.output_item.added", output_index=0, item=item)
            + self._named_event("response.content_part.added", **self._item_location(), part=_text_part(""))
        )

    def token_event(self, choice: ResponseChoice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        number = 3 + max(1, choice.delivered)
        self._sent = number + 1
        return (
            b'{"content_index":0,"delta":"%b","item_id":%b,"logprobs":[],"output_index":0,"sequence_number":%d,'
            b'"type":"response.output_text.delta"}'
        ) % (text, json_bytes(self._message), number)

    def closing_events(self) -> bytes:
        choice = self.choices[0]
        whole = _finished_response(self, self._message)
        done = {"length": "response.incomplete"}.get(choice.reason or "", "response.completed")
        return (
            self._named_event("response.output_text.done", **self._item_location(), text=choice.text, logprobs=[])
            + self._named_event("response.content_part.done", **self._item_location(), part=_text_part(choice.text))
            + self._named_event("response.output_item.done", output_index=0, item=whole["output"][0])
            + self._named_event(done, response=whole)
        )

    def _item_location(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": 0, "content_index": 0}

    def _named_event(self, kind: str, **parts: object) -> bytes:
        body = {"type": kind, "sequence_number": self._sent, **parts}
        self._sent += 1
        return http_chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), json_bytes(body)))
