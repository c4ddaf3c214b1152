"""Prompts as clients write them: text, token ids, lists of either, or a conversation.

Text that is far too long is rejected before tokenization.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.generation.reply_script import TOKEN_BYTES
from fairlead_sim.generation.requests import GenerationRequest, TokenizedPrompt, prompt_too_long
from fairlead_sim.http.errors import InvalidRequest
from fairlead_sim.http.fields import RequestFields

_NONE_GIVEN = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"


@dataclass(frozen=True, slots=True)
class PromptParser:
    """The parser of prompts.

    resolve_model: sets the model of a request, or raises ResourceNotFound.
    """

    tokenizer: Tokenizer
    max_model_len: int
    resolve_model: Callable[[GenerationRequest], None]
    auto_tools: bool

    def from_text(self, text: str) -> TokenizedPrompt:
        """Returns a text prompt. Raises InvalidRequest if it cannot fit."""
        self._check_length(len(text))
        return TokenizedPrompt(self.tokenizer.encode(text), text)

    def from_chat(self, messages: list[dict[str, Any]], *, unfinished: bool = False) -> TokenizedPrompt:
        """Returns the prompt of a conversation. Raises InvalidRequest if it cannot fit.

        unfinished: the answer continues the last message.
        """
        self._check_length(sum(_count_characters(message.get("content")) for message in messages))
        return TokenizedPrompt(self.tokenizer.encode_chat(messages, continues_last=unfinished))

    def _check_length(self, characters: int) -> None:
        min_tokens = -(-characters // TOKEN_BYTES)
        if min_tokens > self.max_model_len:
            raise prompt_too_long(min_tokens, self.max_model_len)


def _count_characters(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list):
        return 0
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return sum(len(text) for text in texts if isinstance(text, str))


def parse_completion_prompts(fields: RequestFields, prompt_parser: PromptParser) -> list[TokenizedPrompt]:
    """Returns the prompts of the completions endpoint. Raises InvalidRequest if there is none."""
    if fields.body.get("prompt") in (None, ""):
        raise InvalidRequest(_NONE_GIVEN, param="prompt")
    return parse_prompts(fields, "prompt", prompt_parser)


def parse_prompts(fields: RequestFields, name: str, prompt_parser: PromptParser) -> list[TokenizedPrompt]:
    """Returns the prompts of a text, token ids, or a list of either; wrong types are findings.

    Raises InvalidRequest for an empty list, or a text that cannot fit.
    """
    value = fields.body.get(name)
    if isinstance(value, str):
        return [prompt_parser.from_text(value)]
    if not isinstance(value, list):
        fields.add_wrong("string_type", name, "Input should be a valid string", value)
        return []
    if not value:
        raise InvalidRequest("You must pass at least one prompt")
    if _is_token_ids(value):
        return [TokenizedPrompt(value, is_token_ids=True)]
    prompts = []
    for at, item in enumerate(value):
        if isinstance(item, str):
            prompts.append(prompt_parser.from_text(item))
        elif isinstance(item, list) and _is_token_ids(item):
            prompts.append(TokenizedPrompt(item, is_token_ids=True))
        else:
            fields.add_wrong("string_type", f"{name}.{at}", "Input should be a valid string", item)
    return prompts


def parse_messages(fields: RequestFields) -> list[dict[str, Any]]:
    """Returns the objects in ``messages``; missing fields and wrong types are findings.

    Raises InvalidRequest for parts that need a multi-modal model.
    """
    if "messages" not in fields.body:
        fields.add_missing("messages")
        return []
    messages = fields.items("messages") or []
    for at, message in enumerate(messages):
        where = f"messages.{at}"
        if not isinstance(message, dict):
            fields.add_wrong("dict_type", where, "Input should be a valid dictionary", message)
        elif "role" not in message:
            fields.add_wrong("missing", f"{where}.role", "Field required", message)
        elif not isinstance(message["role"], str):
            fields.add_wrong("string_type", f"{where}.role", "Input should be a valid string", message["role"])
        else:
            _validate_content(fields, f"{where}.content", message.get("content"))
    return [message for message in messages if isinstance(message, dict)]


def injected_token_ids(fields: RequestFields) -> list[int] | None:
    """Returns the token ids in ``kv_transfer_params`` that replace the rendered prompt.

    A gateway passes its own tokenization this way.
    """
    params = fields.body.get("kv_transfer_params")
    ids = params.get("prompt_token_ids") if isinstance(params, dict) else None
    return ids if isinstance(ids, list) and ids and _is_token_ids(ids) else None


def _validate_content(fields: RequestFields, where: str, content: Any) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        fields.add_wrong("string_type", where, "Input should be a valid string", content)
        return
    for at, part in enumerate(content):
        if isinstance(part, str):
            continue
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            fields.add_wrong("missing", f"{where}.{at}.type", "Field required", part)
        elif part["type"] == "text" or "text" in part:
            if not isinstance(part.get("text"), str):
                fields.add_wrong(
                    "string_type", f"{where}.{at}.text", "Input should be a valid string", part.get("text")
                )
        elif part["type"] in ("image_url", "input_audio", "audio_url", "video_url"):
            raise InvalidRequest("The model is not a multimodal model")


def _is_token_ids(items: list[Any]) -> bool:
    return set(map(type, items)) == {int}
