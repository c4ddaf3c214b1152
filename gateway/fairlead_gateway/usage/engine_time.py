"""The engine time of a request, from the profile of its engine."""

from fairlead.engine_profile import EngineProfile


def prefill_microseconds(profile: EngineProfile, input_tokens: int, cached_tokens: int) -> int:
    """Returns the engine time to compute a prompt without its cached tokens."""
    if input_tokens <= 0:
        return 0
    return round(profile.prefill_time(input_tokens, min(cached_tokens, input_tokens)) * 1e6)


def decode_microseconds(
    profile: EngineProfile, input_tokens: int, output_tokens: int, concurrency: float | None
) -> int:
    """Returns the engine time to generate an answer: its share of each step of the engine.

    concurrency: requests that the engine runs at once, which share each step. None if the engine
        does not report it: the request then counts as running alone.
    """
    steps = output_tokens - 1  # the first token comes with the prefill
    if steps <= 0:
        return 0
    sequences = max(1, min(profile.max_sequences, round(concurrency or 1)))
    resident = round(sequences * (input_tokens + output_tokens / 2))
    step = profile.step_time(computed=sequences, sequences=sequences, resident=min(resident, profile.kv_tokens))
    return round(steps * step / sequences * 1e6)
