"""The unmodified ``anthropic`` and ``openai`` SDKs for Python against a server.

It writes a JSON line for each check: its name, and ``said``, which must not depend on whether a
gateway is between client and engine. With ``budget``, it sends requests until it is refused.
``checks.mjs`` makes the same checks in Node.

Usage: ``checks.py BASE_URL KEY MODEL [budget DIALECT]``.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import anthropic
import openai

BASE, KEY, MODEL, *MODE = sys.argv[1:]
PROMPT = "def parse(text: str) -> list[str]:"
TOKENS = 12
ATTEMPTS = 40
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
claude = anthropic.Anthropic(base_url=BASE, auth_token=KEY, api_key=None, max_retries=0, timeout=180)
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0, timeout=180)
TURNS: Any = [{"role": "user", "content": PROMPT}]
WEATHER: Any = {"name": "weather", "description": "of a city", "input_schema": CITY}
FUNCTION: Any = {"type": "function", "name": "weather", "description": "of a city", "parameters": CITY}
GREEDY, RANDOM = {"temperature": 0}, {"temperature": 1}
"""Fields that engines know and this SDK does not."""
MESSAGE: dict[str, Any] = {"model": MODEL, "messages": TURNS, "max_tokens": TOKENS, "extra_body": GREEDY}
RESPONSE: dict[str, Any] = {"model": MODEL, "input": PROMPT, "max_output_tokens": TOKENS, "temperature": 0}
CHAT: dict[str, Any] = {"model": MODEL, "messages": TURNS, "max_tokens": TOKENS, "temperature": 0}
Said = dict[str, Any]

DIALECTS = ("messages", "responses", "chat")


def _message(found: Any) -> Said:
    usage = found.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    text = "".join(block.text for block in found.content if block.type == "text")
    return {"text": text, "stop": found.stop_reason, "tokens": [usage.input_tokens + cached, usage.output_tokens]}


def _response(found: Any) -> Said:
    usage = found.usage
    return {
        "text": found.output_text,
        "status": found.status,
        "tokens": [usage.input_tokens, usage.output_tokens],
    }


def _chat(found: Any) -> Said:
    choice, usage = found.choices[0], found.usage
    return {
        "text": choice.message.content,
        "stop": choice.finish_reason,
        "tokens": [usage.prompt_tokens, usage.completion_tokens],
    }


def _kinds(kinds: list[str]) -> list[str]:
    return [kind for at, kind in enumerate(kinds) if not at or kinds[at - 1] != kind]


def _raised(call: Callable[[], object]) -> list[Any]:
    """Returns the class and the status of the error that a call raises."""
    try:
        call()
    except (anthropic.APIStatusError, openai.APIStatusError) as error:
        return [type(error).__name__, error.status_code]
    return ["nothing", 200]


def _refused(create: Callable[..., object], usual: dict[str, Any], **fields: Any) -> list[Any]:
    return _raised(lambda: create(**{**usual, **fields}))


def messages_whole() -> Said:
    return _message(claude.messages.create(**MESSAGE))


def messages_with_a_system_prompt() -> Said:
    system = [{"type": "text", "text": "Write code.", "cache_control": {"type": "ephemeral"}}]
    return _message(claude.messages.create(**MESSAGE, system=system))


def messages_streamed() -> Said:
    kinds, text, output = [], "", None
    for event in claude.messages.create(**MESSAGE, stream=True):
        kinds.append(event.type)
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
        if event.type == "message_delta":
            output = event.usage.output_tokens
    return {"events": _kinds(kinds), "text": text, "output_tokens": output}


def messages_with_the_streaming_helper() -> Said:
    with claude.messages.stream(**MESSAGE) as stream:
        text = "".join(stream.text_stream)
        return {"helper": text, **_message(stream.get_final_message())}


def messages_call_a_tool() -> Said:
    """Random weights may write white space for ever, so there are several attempts."""
    fields = {**MESSAGE, "max_tokens": 80, "extra_body": RANDOM, "tools": [WEATHER]}
    for _ in range(ATTEMPTS):
        found = claude.messages.create(**fields, tool_choice={"type": "tool", "name": "weather"})
        calls = [block for block in found.content if block.type == "tool_use"]
        if calls and calls[0].input.get("city"):
            return {"name": calls[0].name, "is_city": calls[0].input["city"] in ("Oslo", "Rome")}
    raise LookupError(f"no call in {ATTEMPTS} attempts")


def messages_take_the_result_of_a_tool() -> Said:
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}
    turns = [*TURNS, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    return _message(claude.messages.create(**{**MESSAGE, "messages": turns, "tools": [WEATHER]}))


def messages_count_tokens() -> Said:
    return {"tokens": claude.messages.count_tokens(model=MODEL, messages=TURNS).input_tokens}


def messages_errors() -> Said:
    send = claude.messages.create
    return {
        "unknown model": _refused(send, MESSAGE, model="nobody"),
        "no messages": _refused(send, MESSAGE, messages=[]),
        "negative limit": _refused(send, MESSAGE, max_tokens=-1),
        "too long": _refused(send, MESSAGE, messages=[{"role": "user", "content": "x y " * 9_000}]),
        "count of an unknown model": _raised(lambda: claude.messages.count_tokens(model="nobody", messages=TURNS)),
    }


def responses_whole() -> Said:
    return _response(client.responses.create(**RESPONSE))


def responses_with_instructions_and_turns() -> Said:
    fields = {**RESPONSE, "instructions": "Write code.", "input": TURNS, "store": False}
    return _response(client.responses.create(**fields))


def responses_streamed() -> Said:
    events = list(client.responses.create(**RESPONSE, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    numbers = [event.sequence_number for event in events]
    last: Any = events[-1]
    rising = numbers == sorted(set(numbers))
    return {
        "events": _kinds([event.type for event in events]),
        "text": text,
        "rising": rising,
        **_response(last.response),
    }


def responses_with_the_streaming_helper() -> Said:
    with client.responses.stream(**RESPONSE) as stream:
        kinds = _kinds([event.type for event in stream])
        return {"events": kinds, **_response(stream.get_final_response())}


def responses_call_a_tool() -> Said:
    fields = {**RESPONSE, "max_output_tokens": 80, "temperature": 1, "tools": [FUNCTION], "tool_choice": "required"}
    for _ in range(ATTEMPTS):
        calls: list[Any] = [item for item in client.responses.create(**fields).output if item.type == "function_call"]
        if calls and calls[0].arguments.strip().endswith("}"):
            return {"name": calls[0].name, "is_city": json.loads(calls[0].arguments).get("city") in ("Oslo", "Rome")}
    raise LookupError(f"no call in {ATTEMPTS} attempts")


def responses_take_the_result_of_a_tool() -> Said:
    call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Oslo"}'}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    return _response(client.responses.create(**{**RESPONSE, "input": [*TURNS, call, result], "tools": [FUNCTION]}))


def responses_follow_a_json_schema() -> Said:
    form: Any = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
    found = client.responses.create(**{**RESPONSE, "max_output_tokens": 60}, text=form)
    return {"is_city": json.loads(found.output_text)["city"] in ("Oslo", "Rome")}


def responses_are_retrieved_by_id() -> Said:
    made = client.responses.create(**RESPONSE, store=True)
    found = client.responses.retrieve(made.id)
    return {"same": found.id == made.id, **_response(found)}


def responses_continue_an_earlier_one() -> Said:
    made = client.responses.create(**RESPONSE, store=True)
    return _response(client.responses.create(**{**RESPONSE, "previous_response_id": made.id, "input": "go on"}))


def responses_are_cancelled() -> Said:
    long = {**RESPONSE, "max_output_tokens": 3_000, "extra_body": {"ignore_eos": True}}
    made = client.responses.create(**long, background=True, store=True)
    return {"status": client.responses.cancel(made.id).status}


def responses_errors() -> Said:
    send = client.responses.create
    return {
        "unknown model": _refused(send, RESPONSE, model="nobody"),
        "too long": _refused(send, RESPONSE, input="x y " * 9_000),
        "unknown id": _raised(lambda: client.responses.retrieve("resp_nobody")),
        "cancel of an unknown id": _raised(lambda: client.responses.cancel("resp_nobody")),
        "unknown earlier id": _refused(send, RESPONSE, previous_response_id="resp_nobody"),
    }


def chat_whole() -> Said:
    return _chat(client.chat.completions.create(**CHAT))


def chat_streamed() -> Said:
    chunks: list[Any] = list(
        client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return {"text": text, "output_tokens": chunks[-1].usage.completion_tokens}


def chat_follows_a_json_schema() -> Said:
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    found = client.chat.completions.create(**{**CHAT, "max_tokens": 60}, response_format=form)
    return {"is_city": json.loads(found.choices[0].message.content or "")["city"] in ("Oslo", "Rome")}


def chat_errors() -> Said:
    send = client.chat.completions.create
    return {
        "unknown model": _refused(send, CHAT, model="nobody"),
        "too long": _refused(send, CHAT, messages=[{"role": "user", "content": "x y " * 9_000}]),
        "temperature": _refused(send, CHAT, temperature=-1),
    }


def spend(dialect: str) -> Said:
    """Sends requests until one is refused; returns the tokens of the others and the refusal."""
    send: dict[str, Callable[[], Any]] = {
        "messages": lambda: _message(claude.messages.create(**MESSAGE)),
        "responses": lambda: _response(client.responses.create(**RESPONSE)),
        "chat": lambda: _chat(client.chat.completions.create(**CHAT)),
    }
    answered, tokens = 0, 0
    for _ in range(100):
        try:
            tokens += sum(send[dialect]()["tokens"])
        except (anthropic.APIStatusError, openai.APIStatusError) as error:
            body: Any = error.body
            inner = body.get("error", body) if isinstance(body, dict) else {}
            return {
                "answered": answered,
                "tokens": tokens,
                "raised": [type(error).__name__, error.status_code, inner.get("type")],
                "retry_after": "retry-after" in error.response.headers,
            }
        answered += 1
    return {"answered": answered, "tokens": tokens, "raised": ["nothing", 200, None], "retry_after": False}


def main() -> None:
    """Makes every check, or spends a budget."""
    if MODE:
        print(json.dumps({"name": f"budget: {MODE[1]}", "said": spend(MODE[1])}), flush=True)
        return
    prefixes = tuple(f"{dialect}_" for dialect in DIALECTS)
    for check in [found for name, found in globals().items() if name.startswith(prefixes)]:
        name = check.__name__.replace("_", " ")
        try:
            line: dict[str, Any] = {"name": name, "said": check()}
        except Exception as error:  # noqa: BLE001 - the next check is made whatever this one met
            status = getattr(error, "status_code", None)
            line = {"name": name, "failed": [type(error).__name__, status], "why": str(error)[:300]}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
