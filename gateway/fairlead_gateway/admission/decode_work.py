"""The engine time of an answer, which is charged to its caller like that of the prompt.

A step decodes one token of every running sequence. So a token costs a sequence its share of a full
batch, and the time to read its own KV cache. A batch is full at the engine's number of sequences,
or if no more sequences of this length fit its memory.
"""

from fairlead.engine_profile import EngineProfile


def decode_seconds(profile: EngineProfile, prompt_tokens: float, output_tokens: float, sequences: int) -> float:
    """Returns the engine seconds to decode an answer.

    output_tokens: of each of the sequences.
    """
    fitting = int(profile.kv_tokens / max(1.0, prompt_tokens + output_tokens))
    batch = max(1, min(profile.max_sequences, fitting))
    token_seconds = profile.step_time(computed=batch, sequences=batch, resident=0) / batch
    context_seconds = profile.resident_token_seconds * (prompt_tokens + output_tokens / 2)
    return sequences * output_tokens * (token_seconds + context_seconds)
