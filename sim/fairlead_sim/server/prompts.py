"""Prompts as clients write them: text, token ids, lists of either, or a conversation. Text far too long is not tokenised."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairlead_sim.server.asks import Ask, Prompt, too_long
from fairlead_sim.server.fields import Fields
from fairlead_sim.server.problems import Refused
from fairlead_sim.server.scripts import PIECE
from fairlead_sim.tokenizer import Tokenizer

_NONE_GIVEN = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"


@dataclass(frozen=True, slots=True)
class Frontend:
    """What turns requests into prompts; ``resolve`` finds the model of an ask, or raises Unknown."""

    tokenizer: Tokenizer
    max_model_len: int
    resolve: Callable[[Ask], None]
    auto_tools: bool

    def text(self, text: str) -> Prompt:
        """A prompt of plain text. Raises Refused when it cannot fit, however its tokens fall."""
        self._bounded(len(text))
        return Prompt(self.tokenizer.encode(text), text)

    def chat(self, messages: list[dict[str, Any]], *, unfinished: bool = False) -> Prompt:
        """A prompt of a conversation; ``unfinished``: its last message goes on. Raises Refused as ``text`` does."""
        self._bounded(sum(_characters(message.get("content")) for message in messages))
        return Prompt(self.tokenizer.chat_tokens(messages, unfinished=unfinished))

    def _bounded(self, characters: int) -> None:
        least = -(-characters // PIECE)
        if least > self.max_model_len:
            raise too_long(least, self.max_model_len)


def _characters(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list):
        return 0
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return sum(len(text) for text in texts if isinstance(text, str))


def completion_prompts(fields: Fields, frontend: Frontend) -> list[Prompt]:
    """``prompt`` of the completions endpoint. Raises Refused when there is none."""
    if fields.body.get("prompt") in (None, ""):
        raise Refused(_NONE_GIVEN, param="prompt")
    return several(fields, "prompt", frontend)


def several(fields: Fields, name: str, frontend: Frontend) -> list[Prompt]:
    """A text, token ids, or a list of either. Raises Refused for an empty list."""
    value = fields.body.get(name)
    if isinstance(value, str):
        return [frontend.text(value)]
    if not isinstance(value, list):
        fields.wrong("string_type", name, "Input should be a valid string", value)
        return []
    if not value:
        raise Refused("You must pass at least one prompt")
    if _is_ids(value):
        return [Prompt(value, given=True)]
    prompts = []
    for at, item in enumerate(value):
        if isinstance(item, str):
            prompts.append(frontend.text(item))
        elif isinstance(item, list) and _is_ids(item):
            prompts.append(Prompt(item, given=True))
        else:
            fields.wrong("string_type", f"{name}.{at}", "Input should be a valid string", item)
    return prompts


def conversation(fields: Fields) -> list[dict[str, Any]]:
    """``messages``, each an object with a role. Raises Refused for parts that only multi-modal models read."""
    if "messages" not in fields.body:
        fields.missing("messages")
        return []
    messages = fields.items("messages") or []
    for at, message in enumerate(messages):
        where = f"messages.{at}"
        if not isinstance(message, dict):
            fields.wrong("dict_type", where, "Input should be a valid dictionary", message)
        elif "role" not in message:
            fields.wrong("missing", f"{where}.role", "Field required", message)
        elif not isinstance(message["role"], str):
            fields.wrong("string_type", f"{where}.role", "Input should be a valid string", message["role"])
        else:
            _content(fields, f"{where}.content", message.get("content"))
    return [message for message in messages if isinstance(message, dict)]


def injected_ids(fields: Fields) -> list[int] | None:
    """Token ids in ``kv_transfer_params`` that replace the rendered prompt: how a gateway hands on what it tokenised."""
    params = fields.body.get("kv_transfer_params")
    ids = params.get("prompt_token_ids") if isinstance(params, dict) else None
    return ids if isinstance(ids, list) and ids and _is_ids(ids) else None


def _content(fields: Fields, where: str, content: Any) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        fields.wrong("string_type", where, "Input should be a valid string", content)
        return
    for at, part in enumerate(content):
        if isinstance(part, str):
            continue
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            fields.wrong("missing", f"{where}.{at}.type", "Field required", part)
        elif part["type"] == "text" or "text" in part:
            if not isinstance(part.get("text"), str):
                fields.wrong("string_type", f"{where}.{at}.text", "Input should be a valid string", part.get("text"))
        elif part["type"] in ("image_url", "input_audio", "audio_url", "video_url"):
            raise Refused("The model is not a multimodal model")


def _is_ids(items: list[Any]) -> bool:
    return set(map(type, items)) == {int}
