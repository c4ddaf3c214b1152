"""``/v1/responses``: OpenAI's newest form of generation; nothing is stored."""

import functools
from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.generation import reply_script, requests
from fairlead_sim.generation.reply_parser import ReplyDelta, ToolCall
from fairlead_sim.generation.requests import GenerationRequest, parse_messages, validate_named
from fairlead_sim.generation.responses import GenerationResponse, ResponseHost
from fairlead_sim.generation.streaming import PartStream, json_bytes
from fairlead_sim.http.connection import ResponseWriter, http_chunk
from fairlead_sim.http.errors import InvalidRequest
from fairlead_sim.http.fields import RequestFields, json_body

_NEEDED = {"function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id",)}


def create_response(context: RequestContext) -> None:
    engine = context.engine
    fields = RequestFields(json_body(context.request))
    _validate_tool_usage(fields.body)
    own_id = fields.text("request_id") or f"resp_{engine.new_id()}"
    generation_request = requests.parse_common(fields, context.request, own_id)
    generation_request.request_id = own_id
    generation_request.max_tokens = fields.integer("max_output_tokens")
    turns, tools = response_turns(fields), chat_tools(fields)
    text = fields.mapping("text")
    one_call = not fields.flag("parallel_tool_calls", True)
    fields.check()
    form = text.get("format") if text is not None else None
    if isinstance(form, dict) and isinstance(form.get("schema"), dict):
        generation_request.forced_text = reply_script.parse_forced_text(
            RequestFields({"structured_outputs": {"json": form["schema"]}})
        )
    engine.models.resolve(generation_request)
    choice = fields.body.get("tool_choice") or "auto"
    name = choice.get("name") if isinstance(choice, dict) else None
    engine.prompt_parser.apply_tool_choice(generation_request, tools, choice, name, one_call=one_call)
    requests.validate_sampling(fields, generation_request)
    unfinished = _continues_last_item(fields.body["input"])
    prompt = engine.prompt_parser.from_chat(turns, tools=tools, unfinished=unfinished)
    generation_request.prompts = [prompt]
    echo = _echoed_fields(fields, generation_request, engine.settings.max_model_len - len(prompt.tokens))
    fields.check()
    response = ResponseObjectStream if generation_request.stream else ResponseObject
    engine.begin(generation_request, functools.partial(response, echo=echo), context.writer, context.fault)


def _validate_tool_usage(body: Any) -> None:
    """Raises InvalidRequest where vLLM does before it looks at types."""
    if body.get("prompt") is not None:
        raise InvalidRequest.for_param("prompt template is not supported", "prompt")
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    is_named = isinstance(choice, dict) and choice.get("type") == "function"
    if not tools and choice == "required":
        raise InvalidRequest.for_param(
            "Tool choice 'required' must be specified with 'tools' parameter.", "tool_choice"
        )
    names = [tool.get("name") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    if is_named and choice.get("name") not in names:
        raise InvalidRequest.for_param("Tool choice 'function' not found in 'tools' parameter.", "tool_choice")


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
            raise InvalidRequest.for_param("Encrypted content is not supported.", "input")
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
        raise InvalidRequest.for_param(f"Unsupported input item type: {kind}", "input")


def chat_tools(fields: RequestFields) -> list[dict[str, Any]]:
    """Returns the functions among the tools, as a chat request has them."""
    tools = fields.items("tools") or []
    for at, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            fields.add_wrong("missing", f"tools.{at}.type", "Field required", tool)
    functions = [tool for tool in tools if isinstance(tool, dict) and tool.get("type") == "function"]
    validate_named(fields, "tools", functions)
    return [{"function": tool} for tool in functions]


def _continues_last_item(turn_input: Any) -> bool:
    """Whether the answer continues the last item, an unfinished message."""
    last = turn_input[-1] if isinstance(turn_input, list) and turn_input else {}
    continues = last.get("type", "message") in ("message", "reasoning")
    return continues and last.get("status") in ("in_progress", "incomplete")


def _echoed_fields(fields: RequestFields, request: GenerationRequest, max_tokens: int) -> dict[str, Any]:
    """Returns the fields of a response object that repeat the request."""
    body = fields.body
    choice = body.get("tool_choice") or "auto"
    if not body.get("tools"):
        choice = "none"
    elif isinstance(choice, dict):
        choice = {"name": choice.get("name"), "type": choice.get("type")}
    text, reasoning = fields.mapping("text"), fields.mapping("reasoning")
    if text is not None:
        form = text.get("format")
        if isinstance(form, dict) and form.get("type") == "json_schema":
            form = {name: form.get(name) for name in _FORMAT_FIELDS}
        text = {"format": form, "verbosity": text.get("verbosity")}
    return {
        "instructions": body.get("instructions"),
        "metadata": fields.mapping("metadata"),
        "model": request.model,
        "object": "response",
        "output": [],
        "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
        "temperature": fields.number("temperature", 1.0),
        "tool_choice": choice,
        "tools": [
            {name: tool.get(name) for name in _TOOL_FIELDS} if tool["type"] == "function" else tool
            for tool in body.get("tools") or ()
        ],
        "top_p": fields.number("top_p", 1.0),
        "background": fields.flag("background"),
        "max_output_tokens": max_tokens if request.max_tokens is None else request.max_tokens,
        "max_tool_calls": fields.integer("max_tool_calls"),
        "previous_response_id": fields.text("previous_response_id"),
        "prompt": None,
        "reasoning": None if reasoning is None else {name: reasoning.get(name) for name in _REASONING_FIELDS},
        "service_tier": fields.text("service_tier", "auto"),
        "status": "queued",
        "text": text,
        "top_logprobs": None,
        "truncation": fields.text("truncation", "disabled"),
        "usage": None,
        "user": fields.text("user"),
        "presence_penalty": fields.number("presence_penalty", 0.0),
        "frequency_penalty": fields.number("frequency_penalty", 0.0),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


_FORMAT_FIELDS = ("name", "schema", "type", "description", "strict")
_REASONING_FIELDS = ("context", "effort", "generate_summary", "mode", "summary")
_TOOL_FIELDS = (
    *("name", "parameters", "strict", "type", "allowed_callers", "async", "defer_loading", "description"),
    "output_schema",
)


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
            "reasoning_tokens": response.reasoning_tokens,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": prompt + completion,
    }


def _reasoning_item(number: str, text: str | None, status: str | None) -> dict[str, Any]:
    content = None if text is None else [{"text": text, "type": "reasoning_text"}]
    fields = {"id": f"rs_{number}", "summary": [], "type": "reasoning", "content": content}
    return fields | {"encrypted_content": None, "status": status}


def _text_part(text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def _message_item(number: str, text: str | None, status: str) -> dict[str, Any]:
    return {
        "id": f"msg_{number}",
        "content": [] if text is None else [_text_part(text)],
        "role": "assistant",
        "status": status,
        "type": "message",
        "phase": None,
    }


def _call_item(number: str, call_id: str, call: ToolCall, status: str) -> dict[str, Any]:
    return {
        "arguments": call.arguments,
        "call_id": call_id,
        "name": call.name,
        "type": "function_call",
        "id": f"fc_{number}",
        "async": None,
        "caller": None,
        "namespace": None,
        "status": status,
    }


def _finished_response(
    response: GenerationResponse, echo: dict[str, Any], output: list[dict[str, Any]]
) -> dict[str, Any]:
    is_cut = response.choices[0].reason == "length"
    status = "incomplete" if is_cut else "completed"  # an abort is completed, as in vLLM
    why = {"reason": "max_output_tokens"} if is_cut else None
    return _response_object(response, echo, why) | {
        "output": output,
        "status": status,
        "usage": _response_usage(response),
    }


def _response_object(response: GenerationResponse, echo: dict[str, Any], why: object = None) -> dict[str, Any]:
    return {"id": response.id, "created_at": response.created, "incomplete_details": why, **echo}


class ResponseObject(GenerationResponse):
    """The JSON object of one response."""

    id_prefix = ""

    def __init__(
        self, host: ResponseHost, generation_request: GenerationRequest, writer: ResponseWriter, *, echo: dict[str, Any]
    ) -> None:
        super().__init__(host, generation_request, writer)
        self._echo = echo

    def finish(self) -> None:
        reply = self.choices[0].parsed_reply
        output = []
        if reply.reasoning:
            output.append(_reasoning_item(self.host.new_id(), reply.reasoning, None))
        if reply.content:
            output.append(_message_item(self.host.new_id(), reply.content, "completed"))
        for call in reply.calls:
            call_id = f"chatcmpl-tool-{self.host.new_id()}"
            output.append(_call_item(self.host.new_id(), call_id, call, "completed"))
        self.writer.send(200, json_bytes(_finished_response(self, self._echo, output)))


class ResponseObjectStream(PartStream):
    """A stream of numbered, named events around the items of a response."""

    id_prefix = ""

    def __init__(
        self, host: ResponseHost, generation_request: GenerationRequest, writer: ResponseWriter, *, echo: dict[str, Any]
    ) -> None:
        super().__init__(host, generation_request, writer)
        self.is_uniform = False  # every event carries its number
        self._echo = echo
        self._sent = 0
        self._number = self._call_id = self._text = ""  # of the open item
        self._output: list[dict[str, Any]] = []

    def opening_events(self) -> bytes:
        super().opening_events()
        begun = _response_object(self, self._echo) | {"status": "in_progress"}
        return self._named_event("response.created", response=begun) + self._named_event(
            "response.in_progress", response=begun
        )

    def open_part(self, delta: ReplyDelta) -> bytes:
        self._number, self._text = self.host.new_id(), ""
        if delta.name is not None:
            self._call_id = f"chatcmpl-tool-{self.host.new_id()}"
            item = _call_item(self._number, self._call_id, ToolCall(delta.name, ""), "in_progress")
        elif delta.kind == "reasoning":
            item, part = _reasoning_item(self._number, None, "in_progress"), {"text": "", "type": "reasoning_text"}
        else:
            item, part = _message_item(self._number, None, "in_progress"), _text_part("", [])
        chunks = self._named_event("response.output_item.added", item=item, output_index=len(self._output))
        if delta.name is None:
            chunks += self._named_event("response.content_part.added", part=part, **self._place(item))
        return chunks

    def grow_part(self, delta: ReplyDelta) -> bytes:
        self._text += delta.text
        place: dict[str, Any] = {"item_id": f"fc_{self._number}", "output_index": len(self._output)}
        if delta.kind == "call":
            return self._named_event("response.function_call_arguments.delta", delta=delta.text, **place)
        if delta.kind == "reasoning":
            place |= {"item_id": f"rs_{self._number}", "content_index": 0}
            return self._named_event("response.reasoning_text.delta", delta=delta.text, **place)
        place |= {"item_id": f"msg_{self._number}", "content_index": 0}
        return self._named_event("response.output_text.delta", delta=delta.text, logprobs=[], **place)

    def close_part(self) -> bytes:
        if self.part is None:
            return b""
        text, index = self._text, len(self._output)
        if self.part.name is not None:
            item = _call_item(self._number, self._call_id, ToolCall(self.part.name, text), "completed")
            chunks = self._named_event(
                "response.function_call_arguments.done",
                arguments=text,
                item_id=item["id"],
                output_index=index,
                name=self.part.name,
            )
        else:
            if self.part.kind == "reasoning":
                item = _reasoning_item(self._number, text, "completed")
                chunks = self._named_event("response.reasoning_text.done", text=text, **self._place(item))
            else:
                item = _message_item(self._number, text, "completed")
                chunks = self._named_event("response.output_text.done", text=text, logprobs=[], **self._place(item))
            part = item["content"][0]
            chunks += self._named_event("response.content_part.done", part=part, **self._place(item))
        chunks += self._named_event("response.output_item.done", item=item, output_index=index)
        self._output.append(item)
        return chunks

    def closing_events(self) -> bytes:
        chunks = self.close_part()
        whole = _finished_response(self, self._echo, self._output)
        return chunks + self._named_event("response.completed", response=whole)

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self._output), "content_index": 0}

    def _named_event(self, kind: str, *, name: str | None = None, **parts: object) -> bytes:
        """Returns the chunk of the next event; its fields are sorted, but a name is the last."""
        fields = dict(sorted({"type": kind, "sequence_number": self._sent, **parts}.items()))
        if name is not None:
            fields["name"] = name
        self._sent += 1
        return http_chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), json_bytes(fields)))
