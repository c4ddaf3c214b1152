"""The small step model that studies of autoscaling and the autoscaler's seam speak of, as an engine profile."""

from fairlead.engine_profile import EngineProfile


def step_profile(
    name: str,
    base: float,
    sequence: float,
    kv: float,
    prompt: float,
    *,
    step_tokens: int,
    sequences: int,
    kv_tokens: int,
) -> EngineProfile:
    """The profile of an engine whose step takes ``base + sequence·batch + kv·resident + prompt·tokens of prompts``. An
    ``EngineProfile`` counts the decoded token of each sequence as computed, too, so ``sequence_seconds`` is less by that."""
    return EngineProfile(
        name,
        prefill_token_seconds=prompt,
        step_seconds=base,
        sequence_seconds=sequence - prompt,
        resident_token_seconds=kv,
        kv_tokens=kv_tokens,
        max_sequences=sequences,
        step_tokens=step_tokens,
    )
