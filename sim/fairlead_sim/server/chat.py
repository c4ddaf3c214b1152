"""``/v1/chat/completions``: a conversation through the fixed template, whole or as a stream."""

from typing import Any

from fairlead_sim.server import asks, logprobs
from fairlead_sim.server.answers import Answer, Choice, Host
from fairlead_sim.server.asks import Ask, Prompt
from fairlead_sim.server.connection import Reply, Request
from fairlead_sim.server.fields import Fields
from fairlead_sim.server.heads import chunk
from fairlead_sim.server.problems import Malformed, Refused
from fairlead_sim.server.prompts import Frontend, conversation, injected_ids
from fairlead_sim.server.streams import DONE, StreamAnswer, quoted

_NO_PARSER = "requires --tool-call-parser to be set"


def read(fields: Fields, request: Request, request_id: str, frontend: Frontend) -> Ask:
    """The ask of a chat body. Raises Malformed, Unknown or Refused."""
    ask = asks.common(fields, request, request_id)
    latest, older = fields.integer("max_completion_tokens"), fields.integer("max_tokens")
    ask.max_tokens = older if latest is None else latest
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs")
    messages = conversation(fields)
    unfinished = _unfinished(fields, messages)
    injected = injected_ids(fields)
    fields.check()
    frontend.resolve(ask)
    if top is not None and not wanted:
        raise Refused.value("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs", top)
    ask.logprobs = (top or 0) if wanted else None
    ask.lookup = ask.prompt_logprobs is None
    _tools(fields, auto=frontend.auto_tools)
    asks.sound(fields, ask)
    ask.prompts = [frontend.chat(messages, unfinished=unfinished) if injected is None else Prompt(injected, given=True)]
    return ask


def _unfinished(fields: Fields, messages: list[dict[str, Any]]) -> bool:
    """Whether the last message goes on. Raises Malformed when the next turn is asked for as well."""
    wanted = fields.flag("continue_final_message")
    if wanted and fields.flag("add_generation_prompt", True):
        raise Malformed(["Value error, Cannot set both `continue_final_message` and `add_generation_prompt` to True."])
    return wanted and bool(messages)


def _tools(fields: Fields, *, auto: bool) -> None:
    """Tools are read and never called; without a parser the engine refuses to be made to."""
    tools, choice = fields.items("tools"), fields.body.get("tool_choice")
    fields.check()
    if not tools or choice == "none":
        return
    if choice == "required":
        raise Refused(f'tool_choice="required" {_NO_PARSER}')
    if isinstance(choice, dict):
        raise Refused(f"tool_choice with a named function {_NO_PARSER}")
    if not auto:
        raise Refused('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')


class WholeChat(Answer):
    """One JSON object with all choices."""

    id_prefix = "chatcmpl-"

    def complete(self) -> None:
        ask = self.ask
        prompt = ask.prompts[0].tokens
        asked = ask.prompt_logprobs
        body = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": ask.model,
            "choices": [self._choice(choice) for choice in self.choices],
            "service_tier": None,
            "system_fingerprint": self.host.fingerprint,
            "usage": self.usage(self.created_cache_tokens),
            "prompt_logprobs": logprobs.prompt(self.host.tokenizer, prompt, asked) if asked is not None else None,
            "prompt_token_ids": prompt if ask.return_token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": self.host.handed_over(self),
            "ec_transfer_params": None,
            "metrics": None,
        }
        self.reply.send(200, quoted(body))

    def _choice(self, choice: Choice) -> dict[str, Any]:
        ask = self.ask
        found = None
        if ask.logprobs is not None:
            found = logprobs.chat_content(self.host.tokenizer, choice.ids, 0, ask.logprobs)
        return {
            "index": choice.index,
            "message": {
                "role": "assistant",
                "content": choice.text,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            },
            "logprobs": found,
            "finish_reason": choice.reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.ids if ask.return_token_ids else None,
            "routed_experts": None,
        }


class ChatStream(StreamAnswer):
    """A role event for each choice, then one event a token."""

    id_prefix = "chatcmpl-"

    def __init__(self, host: Host, ask: Ask, reply: Reply) -> None:
        super().__init__(host, ask, reply)
        self._opening = b'{"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            quoted(self.id),
            self.created,
            quoted(ask.model),
        )

    def opening(self) -> bytes:
        super().opening()
        prompt = self.ask.prompts[0].tokens
        ids = quoted(prompt) if self.ask.return_token_ids else b"null"
        usage = b""
        if self.ask.continuous_usage:
            usage = (
                b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0,"completion_tokens_details":null}'
                % (len(prompt), len(prompt))
            )
        events = [
            b'data: %b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b,'
            b'"prompt_token_ids":%b,"prompt_text":null}\n\n' % (self._opening, choice.index, usage, ids)
            for choice in self.choices
        ]
        return b"".join(map(chunk, events))

    def event(self, choice: Choice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        ask = self.ask
        found = token_ids = b"null"
        if ask.logprobs is not None:
            at = max(0, choice.count - 1)
            found = quoted(logprobs.chat_content(self.host.tokenizer, ids, at, ask.logprobs))
        if ask.return_token_ids:
            token_ids = quoted(ids)
        stop = b"" if reason is None else b'"stop_reason":%b,' % quoted(choice.stop_reason)
        return (b'%b{"index":%d,"delta":{"content":"%b"},"logprobs":%b,"finish_reason":%b,%b"token_ids":%b}]%b%b}') % (
            self._opening,
            choice.index,
            text,
            found,
            quoted(reason),
            stop,
            token_ids,
            self.running_usage(choice, details=True),
            self.mark(reason),
        )

    def closing(self) -> bytes:
        if not self.ask.include_usage:
            return DONE
        fingerprint = quoted(self.host.fingerprint)
        usage = b'%b],%b,"system_fingerprint":%b}' % (self._opening, self.final_usage(created=True), fingerprint)
        return chunk(b"data: %b\n\n" % usage) + DONE
