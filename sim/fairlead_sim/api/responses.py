"""``/v1/responses``: OpenAI's newest form of generation; nothing is stored."""

from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import reply_script, requests
from fairlead_sim.generation.requests import GenerationRequest, parse_messages, validate_named
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice, ResponseHost
from fairlead_sim.generation.streaming import StreamingResponse, json_bytes
from fairlead_sim.http.connection import ResponseWriter, http_chunk
from fairlead_sim.http.errors import InvalidRequest
from fairlead_sim.http.fields import RequestFields, json_body

_NEEDED = {"function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id",)}


def create_response(context: RequestContext) -> None:
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    generation_request = requests.parse_common(fields, context.request, context.new_request_id())
    generation_request.max_tokens = fields.integer("max_output_tokens")
    turns = response_turns(fields)
    tools = chat_tools(fields)
    text = fields.mapping("text")
    fields.check()
    form = text.get("format") if text is not None else None
    if isinstance(form, dict) and isinstance(form.get("schema"), dict):
        generation_request.forced_text = reply_script.parse_forced_text(
            RequestFields({"structured_outputs": {"json": form["schema"]}})
        )
    engine.models.resolve(generation_request)
    requests.validate_sampling(fields, generation_request)
    unfinished = _continues_last_item(fields.body["input"])
    generation_request.prompts = [engine.prompt_parser.from_chat(turns, tools=tools, unfinished=unfinished)]
    response = ResponseObjectStream if generation_request.stream else ResponseObject
    engine.begin(generation_request, response, context.writer, context.fault)


def response_turns(fields: RequestFields) -> list[dict[str, Any]]:
    """Returns the chat turns that vLLM makes of ``instructions`` and ``input``.

    Raises InvalidRequest for an item that no chat turn can be made of.
    """
    turn_input = fields.require("input")
    turns: list[dict[str, Any]] = []
    instructions = fields.text("instructions")
    if instructions:
        turns.append({"role": "system", "content": instructions})
    if isinstance(turn_input, list):
        _validate_items(fields, turn_input)
        fields.check()
        begin = len(turns)
        for item in turn_input:
            _add_item(turns, item, turns[-1] if len(turns) > begin else {})
    elif isinstance(turn_input, str):
        turns.append({"role": "user", "content": turn_input})
    elif "input" in fields.body:
        fields.add_wrong("string_type", "input", "Input should be a valid string", turn_input)
    return turns


def _validate_items(fields: RequestFields, items: list[Any]) -> None:
    inner = RequestFields({"messages": [item for item in items if not isinstance(item, dict) or "role" in item]})
    parse_messages(inner)
    fields.findings += inner.findings
    for at, item in enumerate(items):
        for name in _NEEDED.get(str(item.get("type")), ()) if isinstance(item, dict) else ():
            if not isinstance(item.get(name), str):
                fields.add_wrong("missing", f"input.{at}.{name}", "Field required", item)


def _add_item(turns: list[dict[str, Any]], item: dict[str, Any], previous: dict[str, Any]) -> None:
    """Adds one input item to the turns. Parts of an answer join one turn of the assistant.

    previous: the turn of the item before; empty for the first.
    """
    answer = previous if previous.get("role") == "assistant" else {}
    kind, content = item.get("type"), item.get("content")
    if kind == "function_call":
        call = {"function": {"name": item["name"], "arguments": item["arguments"]}}
        if answer:
            answer.setdefault("tool_calls", []).append(call)
        else:
            turns.append({"role": "assistant", "tool_calls": [call]})
    elif kind == "function_call_output":
        turns.append({"role": "tool", "content": item.get("output")})
    elif kind == "reasoning" or item.get("role") == "assistant":
        if item.get("encrypted_content"):
            raise InvalidRequest("Encrypted content is not supported. (parameter=input)", param="input")
        name = "reasoning" if kind == "reasoning" else "content"
        texts = content or item.get("summary") or ""
        text = texts if isinstance(texts, str) else texts[0].get("text", "")
        if answer and answer.get(name) is None:
            answer[name] = text
        else:
            turns.append({"role": "assistant", name: text})
    elif "role" in item:
        turns.append(item)
    else:
        raise InvalidRequest(f"Unsupported input item type: {kind} (parameter=input)", param="input")


def chat_tools(fields: RequestFields) -> list[dict[str, Any]]:
    """Returns the functions among the tools, as a chat request has them."""
    tools = fields.items("tools") or []
    functions = [tool for tool in tools if isinstance(tool, dict) and tool.get("type") == "function"]
    validate_named(fields, "tools", functions)
    return [{"function": tool} for tool in functions]


def _continues_last_item(turn_input: Any) -> bool:
    """Whether the answer continues the last item, an unfinished message."""
    last = turn_input[-1] if isinstance(turn_input, list) and turn_input else {}
    continues = last.get("type", "message") in ("message", "reasoning")
    return continues and last.get("status") in ("in_progress", "incomplete")


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
