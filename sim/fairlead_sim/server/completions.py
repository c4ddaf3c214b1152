"""``/v1/completions``: several prompts, n choices each, whole or as a stream, with echo and log-probabilities in shape."""

from typing import Any

from fairlead_sim.server import asks, logprobs
from fairlead_sim.server.answers import Answer, Choice, Host
from fairlead_sim.server.asks import Ask
from fairlead_sim.server.connection import Reply, Request
from fairlead_sim.server.fields import Fields
from fairlead_sim.server.heads import chunk
from fairlead_sim.server.problems import Refused
from fairlead_sim.server.prompts import Frontend, completion_prompts
from fairlead_sim.server.streams import DONE, StreamAnswer, quoted


def read(fields: Fields, request: Request, request_id: str, frontend: Frontend) -> Ask:
    """The ask of a completions body. Raises Malformed, Unknown or Refused."""
    ask = asks.common(fields, request, request_id)
    ask.max_tokens = fields.integer("max_tokens", asks.COMPLETION_TOKENS)
    ask.logprobs = fields.integer("logprobs")
    ask.echo = fields.flag("echo")
    fields.check()
    frontend.resolve(ask)
    if fields.body.get("suffix"):
        raise Refused("suffix is not currently supported")
    if ask.echo and ask.logprobs is not None:
        ask.prompt_logprobs = ask.logprobs
    ask.lookup = ask.prompt_logprobs is None
    ask.prompts = completion_prompts(fields, frontend)
    asks.sound(fields, ask)
    return ask


def _shown_prompt(answer: Answer, choice: Choice) -> str:
    """The prompt's text when it is echoed."""
    if not answer.ask.echo:
        return ""
    text = choice.prompt.text
    return text if text is not None else answer.host.tokenizer.decode(choice.prompt.tokens)


class WholeCompletion(Answer):
    """One JSON object with all choices."""

    def complete(self) -> None:
        body = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.ask.model,
            "choices": [self._choice(choice) for choice in self.choices],
            "service_tier": None,
            "system_fingerprint": self.host.fingerprint,
            "usage": self.usage(None),
            "kv_transfer_params": self.host.handed_over(self),
            "ec_transfer_params": None,
            "metrics": None,
        }
        self.reply.send(200, quoted(body))

    def _choice(self, choice: Choice) -> dict[str, Any]:
        ask, tokenizer = self.ask, self.host.tokenizer
        found = None
        if ask.logprobs is not None:
            ids = [*choice.prompt.tokens, *choice.ids] if ask.echo else choice.ids
            found = logprobs.completion(tokenizer, ids, ask.logprobs, first=ask.echo)
        asked = ask.prompt_logprobs
        prompt_found = logprobs.prompt(tokenizer, choice.prompt.tokens, asked) if asked is not None else None
        return {
            "index": choice.index,
            "text": _shown_prompt(self, choice) + choice.text,
            "logprobs": found,
            "finish_reason": choice.reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.ids if ask.return_token_ids else None,
            "prompt_logprobs": prompt_found,
            "prompt_token_ids": choice.prompt.tokens if ask.return_token_ids else None,
            "routed_experts": None,
        }


class CompletionStream(StreamAnswer):
    """One event a token; the first of a choice echoes the prompt if asked."""

    def __init__(self, host: Host, ask: Ask, reply: Reply) -> None:
        super().__init__(host, ask, reply)
        self._opening = b'{"id":%b,"object":"text_completion","created":%d,"model":%b,"choices":[' % (
            quoted(self.id),
            self.created,
            quoted(ask.model),
        )

    def event(self, choice: Choice, text: bytes, ids: list[int], reason: str | None) -> bytes:
        ask = self.ask
        found = prompt_ids = token_ids = b"null"
        first = choice.count <= 1
        if ask.logprobs is not None:
            found = quoted(
                logprobs.completion(self.host.tokenizer, ids, ask.logprobs, begin=4 * max(0, choice.count - 1))
            )
        if ask.return_token_ids:
            token_ids = quoted(ids)
            prompt_ids = quoted(choice.prompt.tokens) if first else prompt_ids
        if ask.echo and first and choice.count:
            text = quoted(_shown_prompt(self, choice))[1:-1] + text
        return (
            b'%b{"index":%d,"text":"%b","logprobs":%b,"finish_reason":%b,"stop_reason":%b,'
            b'"prompt_token_ids":%b,"token_ids":%b}]%b%b}'
        ) % (
            self._opening,
            choice.index,
            text,
            found,
            quoted(reason),
            quoted(choice.stop_reason),
            prompt_ids,
            token_ids,
            self.running_usage(choice, details=False),
            self.mark(reason),
        )

    def closing(self) -> bytes:
        if not self.ask.include_usage:
            return DONE
        fingerprint = quoted(self.host.fingerprint)
        usage = b'%b],%b,"system_fingerprint":%b}' % (self._opening, self.final_usage(created=False), fingerprint)
        return chunk(b"data: %b\n\n" % usage) + DONE
