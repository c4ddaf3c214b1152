"""The adapter for SGLang, which runs in pods (`fairlead/engines/containers`)."""

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from fairlead.engines.adapter_protocol import PodEngineAdapter
from fairlead.engines.metric_names import SGLANG_METRICS
from fairlead.engines.prometheus_scan import Sample, parse_samples
from fairlead.fleet.signals import EngineSignals

_STEP_TOKENS: Final = b"sglang:realtime_tokens_total"
_MODE: Final = re.compile(rb'[{, ]mode="(prefill|decode)')
_RANK: Final = re.compile(rb'[{, ]dp_rank="(\d{1,9})"')
_MAX_LINES: Final = 1_024


class Sglang(PodEngineAdapter):
    """The adapter for SGLang. Metrics need the flag `--enable-metrics`.

    Tokens are those that the engine counts in each step. It counts the first token of an answer as
    part of the prefill, so that token is missing.

    Why: its totals of prompt and generated tokens grow only when a request ends. An engine with one
    long request would look as if it hung. Releases without counts of steps have these totals alone.
    """

    kind = title = "sglang"
    names = SGLANG_METRICS

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Returns the values of a metrics page, for one data-parallel rank or for all together."""
        samples = _step_tokens(metrics)
        if rank is not None:
            samples = [sample for sample in samples if _rank(sample) == rank]
        return _with_tokens(super().parse_signals(metrics, rank), samples)

    def parse_rank_signals(self, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
        """Returns the values of several ranks of one metrics page."""
        by_rank: dict[int | None, list[Sample]] = {}
        for sample in _step_tokens(metrics):
            by_rank.setdefault(_rank(sample), []).append(sample)
        found = super().parse_rank_signals(metrics, ranks)
        return {rank: _with_tokens(signals, by_rank.get(rank, [])) for rank, signals in found.items()}


def _step_tokens(metrics: bytes) -> list[Sample]:
    return parse_samples(b"\n" + metrics, _STEP_TOKENS, _MAX_LINES)


def _rank(sample: Sample) -> int | None:
    found = _RANK.search(sample[0])
    return None if found is None else int(found[1])


def _with_tokens(signals: EngineSignals, samples: list[Sample]) -> EngineSignals:
    """Returns signals with the tokens of these samples, if there are any."""
    tokens: dict[bytes, float] = {}
    for labels, value in samples:
        if (mode := _MODE.search(labels)) is not None:
            tokens[mode[1]] = tokens.get(mode[1], 0.0) + value
    return replace(
        signals,
        prompt_tokens_total=tokens.get(b"prefill", signals.prompt_tokens_total),
        generation_tokens_total=tokens.get(b"decode", signals.generation_tokens_total),
    )
