"""Messages between supervisor and workers for the KV-cache index."""

from typing import Final

import msgspec

from fairlead_gateway.kv_index.cache_correction import CacheCorrection

PREFIX_MAP_CORRECTION_SECONDS: Final = 0.05
"""Limit: corrections are batched this long for the workers."""
CHAT_SAMPLE: Final = "chat"


class IndexedModels(msgspec.Struct, tag=True):
    """Supervisor → worker: the models (`namespace/name`) that have a KV-cache index."""

    models: list[str]


class IndexCorrections(msgspec.Struct, tag=True):
    """Supervisor → worker: what a model's instances have cached, by the KV-cache index."""

    model: str
    corrections: list[CacheCorrection]


class SampleRequest(msgspec.Struct, tag=True):
    """Supervisor → worker: a query for prompts, by hashes of their ends. Reply: `PromptSamples`."""

    model: str
    tails: list[int]


class PromptSample(msgspec.Struct, array_like=True):
    """The body of a request; `kind` is its dialect.

    adapter: the LoRA adapter that gateways load for it; empty for the model itself.
    tokens: the ids of the prompt, four bytes each, as the engine sent them; empty if it did not.
    """

    tail: int
    kind: str
    body: bytes
    adapter: str = ""
    tokens: bytes = b""


class PromptSamples(msgspec.Struct, tag=True):
    """Worker → supervisor: the prompts of a `SampleRequest` that are still in memory."""

    model: str
    samples: list[PromptSample]


class PromptFinished(msgspec.Struct, array_like=True):
    """A prompt that has finished.

    - prompt_tokens, cached_tokens: as the engine reported them; None if it did not.
    - indexed_share, matched_share: shares of the prompt expected to be cached, by the index (None:
      without one) and by all that was known.
    """

    model: str
    instance: str
    tail: int
    prompt_tokens: int | None
    cached_tokens: int | None
    indexed_share: float | None
    matched_share: float
