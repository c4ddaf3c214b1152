"""The facts on which gateways and the operator rely, of each kind of engine.

A fact is about the kind as it is, so none has a default: a new kind states each. Engines that are
not listed (`custom`, `external`, an API that others run) have no facts, and nothing is assumed of
them. Sources are the engines' sources: vLLM 0.32, SGLang 0.5.23, `tensorrt_llm/inputs/utils.py`,
llama.cpp's server.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

EVERY_TABLE: Final = ("openai", "sglang", "vllm")
"""The tables of an engine whose fields are not known."""


class MediaSource(Enum):
    """The places from which an engine gets media that a request names by URL.

    - NONE: it fetches none.
    - LISTED: from the hosts of a list that it is started with.
    - ANY: from any host. Such an engine also opens files.
    """

    NONE = "none"
    LISTED = "listed"
    ANY = "any"


class PriorityOrder(Enum):
    """The order in which an engine runs requests, by their `priority`."""

    SMALLEST_FIRST = "smallest first"
    LARGEST_FIRST = "largest first"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The facts of one kind.

    - media: of pictures, sound and video.
    - priority: the order by `priority`.
    - takes_cache_salt: a request with `cache_salt` has a cache of its own.
    - sends_token_ids: sends the ids of prompt and answer on request, and reads them.
    - ignores_background: answers a request with `background` at once. Others refuse the field, or
      have a store.
    - checks_token_prompts: refuses token ids outside of the vocabulary.
    - request_tables: the tables of fields that its requests may have (`FIELDS` of the gateway).
    """

    media: MediaSource
    priority: PriorityOrder
    takes_cache_salt: bool
    sends_token_ids: bool
    ignores_background: bool
    checks_token_prompts: bool
    request_tables: tuple[str, ...]


ENGINE_FACTS: Final[dict[str, EngineFacts]] = {
    "vllm": EngineFacts(
        media=MediaSource.LISTED,
        priority=PriorityOrder.SMALLEST_FIRST,
        takes_cache_salt=True,
        sends_token_ids=True,
        ignores_background=False,
        checks_token_prompts=True,
        request_tables=("openai", "vllm"),
    ),
    "sglang": EngineFacts(
        media=MediaSource.LISTED,
        priority=PriorityOrder.LARGEST_FIRST,
        takes_cache_salt=True,
        sends_token_ids=False,
        ignores_background=False,
        checks_token_prompts=False,
        request_tables=("openai", "sglang"),
    ),
    "llamacpp": EngineFacts(
        media=MediaSource.ANY,
        priority=PriorityOrder.UNKNOWN,
        takes_cache_salt=False,
        sends_token_ids=False,
        ignores_background=True,
        checks_token_prompts=True,
        request_tables=EVERY_TABLE,
    ),
    "trtllm": EngineFacts(
        media=MediaSource.ANY,
        priority=PriorityOrder.UNKNOWN,
        takes_cache_salt=False,
        sends_token_ids=False,
        ignores_background=True,
        checks_token_prompts=True,
        request_tables=EVERY_TABLE,
    ),
    "sim": EngineFacts(
        media=MediaSource.NONE,
        priority=PriorityOrder.SMALLEST_FIRST,
        takes_cache_salt=True,
        sends_token_ids=True,
        ignores_background=False,
        checks_token_prompts=True,
        request_tables=("openai", "vllm"),
    ),
}
"""The facts by kind: the value of `spec.engine.type` in lower case."""


def kinds_with(has_fact: Callable[[EngineFacts], bool]) -> frozenset[str]:
    return frozenset(kind for kind, facts in ENGINE_FACTS.items() if has_fact(facts))
