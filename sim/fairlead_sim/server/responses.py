"""``/v1/responses``: the same generation once more, in the newest OpenAI form; nothing is stored."""

from typing import Any

from fairlead_sim.server import asks, structured
from fairlead_sim.server.answers import Answer, Choice, Host
from fairlead_sim.server.app import Call
from fairlead_sim.server.asks import Ask
from fairlead_sim.server.connection import Reply
from fairlead_sim.server.fields import Fields, json_body
from fairlead_sim.server.generating import fresh_id
from fairlead_sim.server.heads import chunk
from fairlead_sim.server.prompts import conversation
from fairlead_sim.server.streams import StreamAnswer, quoted


def responses(call: Call) -> None:
    """Answer one input."""
    engine = call.engine
    fields = Fields(json_body(call.request))
    ask = asks.common(fields, call.request, fresh_id(call))
    ask.max_tokens = fields.integer("max_output_tokens")
    turns = _turns(fields)
    text = fields.mapping("text")
    fields.check()
    form = text.get("format") if text is not None else None
    if isinstance(form, dict) and isinstance(form.get("schema"), dict):
        ask.forced = structured.forced_text(Fields({"structured_outputs": {"json": form["schema"]}}))
    engine.models.resolve(ask)
    asks.sound(fields, ask)
    ask.prompts = [engine.frontend.chat(turns)]
    answer = ResponseStream if ask.stream else WholeResponse
    engine.begin(ask, answer, call.reply, call.fault)


def _turns(fields: Fields) -> list[dict[str, Any]]:
    given = fields.required("input")
    turns: list[dict[str, Any]] = []
    instructions = fields.text("instructions")
    if instructions is not None:
        turns.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        turns.append({"role": "user", "content": given})
    elif isinstance(given, list):
        inner = Fields({"messages": given})
        turns += conversation(inner)
        fields.findings += inner.findings
    elif given is not None:
        fields.wrong("string_type", "input", "Input should be a valid string", given)
    return turns


def _response(
    answer: Answer, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """The response object at any time of its life."""
    ask = answer.ask
    return {
        "id": answer.id,
        "created_at": answer.created,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": None,
        "model": ask.model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": ask.max_tokens,
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


def _usage(answer: Answer) -> dict[str, Any]:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": answer.cached_tokens,
            "cache_write_tokens": answer.created_cache_tokens,
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


def _part(text: str) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _message(message_id: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    return {
        "id": message_id,
        "content": content,
        "role": "assistant",
        "status": status,
        "type": "message",
        "phase": None,
    }


def _finished(answer: Answer, message_id: str) -> dict[str, Any]:
    choice = answer.choices[0]
    status = {"length": "incomplete", "stop": "completed"}.get(choice.reason or "", "cancelled")
    message = _message(message_id, [_part(choice.text)], "completed")
    return _response(answer, status, [message], _usage(answer))


class WholeResponse(Answer):
    """One JSON object."""

    id_prefix = "resp_"

    def complete(self) -> None:
        self.reply.send(200, quoted(_finished(self, _message_id(self))))


def _message_id(answer: Answer) -> str:
    return "msg_" + answer.ask.request_id


class ResponseStream(StreamAnswer):
    """Numbered, named events around text deltas."""

    id_prefix = "resp_"

    def __init__(self, host: Host, ask: Ask, reply: Reply) -> None:
        super().__init__(host, ask, reply)
        self.uniform = False  # every event carries its number
        self._sent = 0
        self._message = _message_id(self)

    def frame(self, event: bytes) -> bytes:
        return b"event: response.output_text.delta\ndata: %b\n\n" % event

    def opening(self) -> bytes:
        super().opening()
        begun = _response(self, "in_progress", [], None)
        item = _message(self._message, [], "in_progress")
        return (
            self._named("response.created", response=begun)
            + self._named("response.in_progress", response=begun)
            + self._named("response.output_item.added", output_index=0, item=item)
            + self._named("response.content_part.added", **self._place(), part=_part(""))
        )

    def event(self, choice: Choice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        number = 3 + max(1, choice.count)
        self._sent = number + 1
        return (
            b'{"content_index":0,"delta":"%b","item_id":%b,"logprobs":[],"output_index":0,"sequence_number":%d,'
            b'"type":"response.output_text.delta"}'
        ) % (text, quoted(self._message), number)

    def closing(self) -> bytes:
        choice = self.choices[0]
        whole = _finished(self, self._message)
        done = {"length": "response.incomplete"}.get(choice.reason or "", "response.completed")
        return (
            self._named("response.output_text.done", **self._place(), text=choice.text, logprobs=[])
            + self._named("response.content_part.done", **self._place(), part=_part(choice.text))
            + self._named("response.output_item.done", output_index=0, item=whole["output"][0])
            + self._named(done, response=whole)
        )

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": 0, "content_index": 0}

    def _named(self, kind: str, **parts: object) -> bytes:
        body = {"type": kind, "sequence_number": self._sent, **parts}
        self._sent += 1
        return chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), quoted(body)))
