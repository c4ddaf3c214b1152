"""Engines, requests and objectives of every kind, drawn: what a model of the autoscaler may be."""

from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest


def _spread(least: float, most: float) -> st.SearchStrategy[float]:
    """Numbers whose orders of magnitude are equally likely."""
    return st.floats(0.0, 1.0).map(lambda share: least * (most / least) ** share)


PROFILES = st.builds(
    EngineProfile,
    name=st.just("drawn"),
    prefill_token_seconds=_spread(1e-6, 3e-3),
    step_seconds=_spread(1e-3, 0.3),
    sequence_seconds=_spread(1e-6, 1e-2),
    resident_token_seconds=_spread(1e-9, 1e-6),
    attention_seconds=st.just(0.0) | _spread(1e-12, 1e-8),
    kv_tokens=_spread(2e3, 5e6).map(round),
    max_sequences=_spread(1.0, 1_024.0).map(round),
    step_tokens=_spread(16.0, 16_384.0).map(round),
)
"""Engines from the fastest to the slowest anyone runs, some with hardly any memory."""
TTFT = st.none() | _spread(1e-3, 120.0)
ITL = st.none() | _spread(1e-3, 3.0)
"""Objectives in seconds: easy ones, tight ones, and such as no engine meets."""
MISSES = st.sampled_from([0.5, 0.1, 0.05, 0.01, 0.001, 1e-4])
OBJECTIVES = st.builds(LatencyTargets, ttft_seconds=TTFT, itl_seconds=ITL, allowed_miss_share=MISSES)
PROMPTS = _spread(1.0, 30_000.0)
OUTPUTS = _spread(1.0, 5_000.0)
MIXES = st.builds(
    MeanRequest,
    prompt_tokens=PROMPTS,
    output_tokens=OUTPUTS,
    cached_share=st.sampled_from([0.0, 0.0, 0.5, 0.95, 1.0]),
    prompt_variability=st.floats(0.0, 4.0),
)
"""Mean requests, from one token to a book."""
