"""``/v1/responses``: OpenAI's newest form of generation, and its stored responses."""

import functools
import json
from typing import Any

from fairlead_sim.api.app import RequestContext
from fairlead_sim.api.response_store import BackgroundWriter, ResponseRefused, StoredResponse
from fairlead_sim.generation import reply_script, requests
from fairlead_sim.generation.reply_parser import ReplyDelta
from fairlead_sim.generation.requests import GenerationRequest, injected_token_ids, parse_messages, validate_named
from fairlead_sim.generation.responses import GenerationResponse, ResponseHost
from fairlead_sim.generation.streaming import PartStream, json_bytes
from fairlead_sim.http.connection import ResponseWriter, http_chunk
from fairlead_sim.http.errors import ApiError, InvalidRequest
from fairlead_sim.http.fields import RequestFields, json_body

_NO_BACKGROUND = (
    "This vLLM engine does not support `store=True` and therefore does not support the background mode. "
    "To enable these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` "
    "when launching the vLLM server."
)
_NEEDED = {"function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id",)}

# vLLM's objects: all fields in their order, with their defaults.
_OBJECTS: dict[str, dict[str, Any]] = json.loads("""{
"response": {"instructions":null,"metadata":null,"model":"","object":"response","output":[],"parallel_tool_calls":true,
  "temperature":1.0,"tool_choice":"auto","tools":[],"top_p":1.0,"background":false,"max_output_tokens":0,
  "max_tool_calls":null,"previous_response_id":null,"prompt":null,"reasoning":null,"service_tier":"auto",
  "status":"queued","text":null,"top_logprobs":null,"truncation":"disabled","usage":null,"user":null,
  "presence_penalty":0.0,"frequency_penalty":0.0,"kv_transfer_params":null,"ec_transfer_params":null,
  "input_messages":null,"output_messages":null},
"tool": {"name":null,"parameters":null,"strict":null,"type":null,"allowed_callers":null,"async":null,
  "defer_loading":null,"description":null,"output_schema":null},
"format": {"name":null,"schema":null,"type":null,"description":null,"strict":null},
"effort": {"context":null,"effort":null,"generate_summary":null,"mode":null,"summary":null},
"reasoning": {"id":"rs_","summary":[],"type":"reasoning","content":null,"encrypted_content":null,"status":null},
"content": {"id":"msg_","content":[],"role":"assistant","status":null,"type":"message","phase":null},
"call": {"arguments":"","call_id":"","name":"","type":"function_call","id":"fc_","async":null,"caller":null,
  "namespace":null,"status":null}
}""")
_ECHOED = (
    *("instructions", "metadata", "parallel_tool_calls", "tool_choice", "background", "max_tool_calls"),
    *("previous_response_id", "service_tier", "truncation", "user"),
)
_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_DELTA_EVENTS = {
    "content": b'{"content_index":0,"delta":%b,"item_id":"%b","logprobs":[],"output_index":%d,"sequence_number":%d,'
    b'"type":"response.output_text.delta"}',
    "reasoning": b'{"content_index":0,"delta":%b,"item_id":"%b","output_index":%d,"sequence_number":%d,'
    b'"type":"response.reasoning_text.delta"}',
    "call": b'{"delta":%b,"item_id":"%b","output_index":%d,"sequence_number":%d,'
    b'"type":"response.function_call_arguments.delta"}',
}
_EVENT_NAMES = {"content": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}


def create_response(context: RequestContext) -> None:
    engine, store = context.engine, context.app.response_store
    fields = RequestFields(json_body(context.request))
    _validate_tool_usage(fields.body)
    own_id = fields.text("request_id") or f"resp_{engine.new_id()}"
    generation_request = requests.parse_common(fields, context.request, own_id)
    generation_request.request_id, generation_request.n = own_id, 1
    generation_request.max_tokens = fields.integer("max_output_tokens")
    tools, text = chat_tools(fields), fields.mapping("text")
    one_call = not fields.flag("parallel_tool_calls", True)
    wants_store, background = fields.flag("store", True), fields.flag("background")
    previous_id = fields.text("previous_response_id")
    form = text.get("format") if text is not None else None
    if isinstance(form, dict) and isinstance(form.get("schema"), dict):
        generation_request.forced_text = reply_script.parse_forced_text(
            RequestFields({"structured_outputs": {"json": form["schema"]}})
        )
    turns = response_turns(fields)
    fields.check()
    engine.models.resolve(generation_request)
    stores = wants_store and engine.settings.surface.response_store
    if background and not stores:
        raise ResponseRefused(_NO_BACKGROUND, "background")
    if previous_id is not None:
        previous = store.find(previous_id)
        history = [turn for turn in previous.turns if turn["role"] != "system"] + previous.output_turns()
        begin = 1 if fields.body.get("instructions") else 0
        turns[begin:begin] = history
    choice = fields.body.get("tool_choice") or "auto"
    name = choice.get("name") if isinstance(choice, dict) else None
    engine.prompt_parser.apply_tool_choice(generation_request, tools, choice, name, one_call=one_call)
    requests.validate_sampling(fields, generation_request)
    unfinished = _continues_last_item(fields.body["input"])
    injected = injected_token_ids(fields)
    prompt = engine.prompt_parser.from_chat(turns, tools=tools, unfinished=unfinished, injected=injected)
    generation_request.prompts = [prompt]
    room = engine.settings.max_model_len - len(prompt.tokens)
    queued = _queued_response(fields, generation_request, engine.unix_seconds(), room)
    fields.check()
    stored = StoredResponse(turns, queued, store if stores else None)
    kind = functools.partial(ResponseObjectStream if generation_request.stream else ResponseObject, stored=stored)
    if not background:
        engine.begin(generation_request, kind, context.writer, context.fault)
        return
    writer = stored.writer = BackgroundWriter()
    stored.events = [] if generation_request.stream else None
    engine.begin(generation_request, kind, writer, context.fault)
    writer.has_begun = True
    store.put(stored)
    if generation_request.stream:
        stored.follow(context.writer, 0)
    else:
        context.writer.send(200, json_bytes(stored.body))


def retrieve_response(context: RequestContext) -> None:
    """Sends a stored response, or the events of a stream in the background."""
    query = RequestFields(context.request.query, where="query")
    after, stream = query.integer("starting_after", -1), query.flag("stream")
    query.check()
    stored = _stored_response(context)
    if stream:
        stored.follow(context.writer, (after or 0) + 1)
    else:
        context.writer.send(200, json_bytes(stored.body))


def cancel_response(context: RequestContext) -> None:
    stored = _stored_response(context)
    stored.cancel()
    context.writer.send(200, json_bytes(stored.body))


def _stored_response(context: RequestContext) -> StoredResponse:
    return context.app.response_store.find(context.request.path.split("/")[3])


def _validate_tool_usage(body: Any) -> None:
    """Raises InvalidRequest where vLLM does before it looks at types."""
    if body.get("prompt") is not None:
        raise InvalidRequest.for_param("prompt template is not supported", "prompt")
    if body.get("background") and not body.get("store", True):
        raise InvalidRequest.for_param("background can only be used when `store` is true", "background")
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if not tools and choice in ("auto", "none"):
        body["tool_choice"] = "none"
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
        first = texts[0] if isinstance(texts, list) else texts
        text = first.get("text") if isinstance(first, dict) else str(first)
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


def _queued_response(fields: RequestFields, request: GenerationRequest, created: int, room: int) -> dict[str, Any]:
    """Returns the response object before the first token; it repeats the request.

    room: tokens that the prompt leaves.
    """
    body, text, reasoning = fields.body, fields.mapping("text"), fields.mapping("reasoning")
    echo = _OBJECTS["response"] | {name: body[name] for name in _ECHOED if body.get(name) is not None}
    echo |= {name: fields.number(name, _OBJECTS["response"][name]) for name in _NUMBERS}
    if isinstance(echo["tool_choice"], dict):
        echo["tool_choice"] = {name: echo["tool_choice"].get(name) for name in ("name", "type")}
    if reasoning is not None:
        echo["reasoning"] = _OBJECTS["effort"] | reasoning
    if text is not None:
        form = text.get("format")
        if isinstance(form, dict) and form.get("type") == "json_schema":
            form = _OBJECTS["format"] | form
        echo["text"] = {"format": form, "verbosity": text.get("verbosity")}
    tools = body.get("tools") or ()
    return (
        {"id": request.request_id, "created_at": created, "incomplete_details": None}
        | echo
        | {
            "model": request.model,
            "tools": [_OBJECTS["tool"] | tool if tool["type"] == "function" else tool for tool in tools],
            "max_output_tokens": room if request.max_tokens is None else request.max_tokens,
        }
    )


def _finished_response(response: GenerationResponse, queued: dict[str, Any], output: list[Any]) -> dict[str, Any]:
    is_cut = response.choices[0].reason == "length"
    prompt, completion = response.prompt_tokens, response.completion_tokens
    read: dict[str, Any] = {
        "cached_tokens": response.cached_tokens,
        "cache_write_tokens": response.created_cache_tokens,
    }
    written: dict[str, Any] = {"reasoning_tokens": response.reasoning_tokens, "tool_output_tokens": 0}
    return queued | {
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": output,
        "status": "incomplete" if is_cut else "completed",  # an abort is completed, as in vLLM
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": read | {"input_tokens_per_turn": [], "cached_tokens_per_turn": []},
            "output_tokens": completion,
            "output_tokens_details": written | {"output_tokens_per_turn": [], "tool_output_tokens_per_turn": []},
            "total_tokens": prompt + completion,
        },
        "kv_transfer_params": response.host.transfer_params(response),
    }


def _item(kind: str, number: str, status: str | None, **fields: object) -> dict[str, Any]:
    empty = _OBJECTS[kind]
    return empty | {"id": empty["id"] + number, "status": status} | fields


def _part(kind: str, text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    if kind == "reasoning":
        return {"text": text, "type": "reasoning_text"}
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


class ResponseObject(GenerationResponse):
    """The JSON object of one response."""

    id_prefix = ""

    def __init__(
        self, host: ResponseHost, request: GenerationRequest, writer: ResponseWriter, *, stored: StoredResponse
    ) -> None:
        super().__init__(host, request, writer)
        self._stored = stored

    def finish(self) -> None:
        reply = self.choices[0].parsed_reply
        output = []
        for kind, text in (("reasoning", reply.reasoning), ("content", reply.content)):
            if text:
                status = None if kind == "reasoning" else "completed"
                output.append(_item(kind, self.host.new_id(), status, content=[_part(kind, text)]))
        for call in reply.calls:
            names = {"call_id": f"chatcmpl-tool-{self.host.new_id()}", "name": call.name}
            output.append(_item("call", self.host.new_id(), "completed", arguments=call.arguments, **names))
        whole = _finished_response(self, self._stored.queued, output)
        self._stored.keep(whole)
        self.writer.send(200, json_bytes(whole))


class ResponseObjectStream(PartStream):
    """A stream of numbered, named events around the items of a response."""

    id_prefix = ""

    def __init__(
        self, host: ResponseHost, request: GenerationRequest, writer: ResponseWriter, *, stored: StoredResponse
    ) -> None:
        super().__init__(host, request, writer)
        self._stored = stored
        self.is_uniform = False  # every event carries its number
        self._sent = 0
        self._item: dict[str, Any] = {}  # the open one
        self._text = ""
        self._output: list[dict[str, Any]] = []

    def start(self) -> None:
        super().start()
        self.writer.write(self.opening_events())

    def opening_events(self) -> bytes:
        super().opening_events()
        begun = self._stored.queued | {"status": "in_progress"}
        return self._named_event("response.created", response=begun) + self._named_event(
            "response.in_progress", response=begun
        )

    def open_part(self, delta: ReplyDelta) -> bytes:
        names = {}
        if delta.name is not None:
            names = {"call_id": f"chatcmpl-tool-{self.host.new_id()}", "name": delta.name}
        self._item, self._text = _item(delta.kind, self.host.new_id(), "in_progress", **names), ""
        chunks = self._named_event("response.output_item.added", item=self._item, output_index=len(self._output))
        if delta.kind != "call":
            chunks += self._part_event("response.content_part.added", part=_part(delta.kind, "", []))
        return chunks

    def grow_part(self, delta: ReplyDelta) -> bytes:
        self._text += delta.text
        place = (self._item["id"].encode(), len(self._output), self._sent)
        event = _DELTA_EVENTS[delta.kind] % (json_bytes(delta.text), *place)
        return self._chunk(f"response.{_EVENT_NAMES[delta.kind]}.delta", event)

    def close_part(self) -> bytes:
        if self.part is None:
            return b""
        kind, text, index = self.part.kind, self._text, len(self._output)
        done = f"response.{_EVENT_NAMES[kind]}.done"
        self._item |= {"status": "completed"}
        if kind == "call":
            self._item["arguments"] = text
            place = {"item_id": self._item["id"], "output_index": index}
            chunks = self._named_event(done, name=self._item["name"], arguments=text, **place)
        else:
            self._item["content"] = [_part(kind, text)]
            chunks = self._part_event(done, text=text, **({"logprobs": []} if kind == "content" else {}))
            chunks += self._part_event("response.content_part.done", part=_part(kind, text))
        chunks += self._named_event("response.output_item.done", item=self._item, output_index=index)
        self._output.append(self._item)
        return chunks

    def closing_events(self) -> bytes:
        chunks = self.close_part()
        whole = _finished_response(self, self._stored.queued, self._output)
        self._stored.keep(whole)
        return chunks + self._named_event("response.completed", response=whole)

    def send_error(self, problem: ApiError) -> None:
        self.writer.break_off()

    def _part_event(self, kind: str, **parts: object) -> bytes:
        return self._named_event(
            kind, item_id=self._item["id"], output_index=len(self._output), content_index=0, **parts
        )

    def _named_event(self, kind: str, **parts: object) -> bytes:
        """Returns the chunk of the next event; its fields are sorted, but a name is the last."""
        fields: dict[str, object] = {"type": kind, "sequence_number": self._sent, **parts}
        return self._chunk(
            kind, json_bytes(dict(sorted(fields.items(), key=lambda field: (field[0] == "name", field[0]))))
        )

    def _chunk(self, kind: str, event: bytes) -> bytes:
        self._sent += 1
        chunk = http_chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), event))
        self._stored.add_event(chunk, is_last=kind == "response.completed")
        return chunk
