"""Made-up log-probabilities in vLLM's form; equal tokens at equal positions have equal values."""

from typing import Any

from fairlead_sim.engine.tokenizer import Tokenizer

_LOGPROB_STEP = 0.75


def _logprob(token: int, at: int) -> float:
    return -0.05 - ((token * 2654435761 + at * 40503) % 4096) / 1024.0


def _alternative_tokens(token: int, count: int, vocab_size: int) -> list[int]:
    """Returns ``count`` tokens that were not chosen."""
    step = vocab_size // 7
    return [(token + (place + 1) * step) % vocab_size for place in range(count)]


def chat_logprobs(tokenizer: Tokenizer, ids: list[int], begin: int, top: int) -> dict[str, Any]:
    """Returns the ``logprobs`` of a chat choice; ``begin`` is the position of the first id."""
    content = []
    for at, token in enumerate(ids, begin):
        value = _logprob(token, at)
        ranked = [(token, value)]
        ranked += [
            (alternative, value - _LOGPROB_STEP * (place + 1))
            for place, alternative in enumerate(_alternative_tokens(token, top - 1, tokenizer.vocab_size))
        ]
        entry = _logprob_entry(tokenizer, token, value)
        entry["top_logprobs"] = [_logprob_entry(tokenizer, ranked_token, worth) for ranked_token, worth in ranked[:top]]
        content.append(entry)
    return {"content": content}


def _logprob_entry(tokenizer: Tokenizer, token: int, value: float) -> dict[str, Any]:
    piece = tokenizer.piece(token)
    return {"token": piece, "logprob": value, "bytes": list(piece.encode())}


def completion_logprobs(
    tokenizer: Tokenizer, ids: list[int], top: int, *, begin: int = 0, first: bool = False
) -> dict[str, Any]:
    """Returns the ``logprobs`` of a completion.

    - begin: offset of the first token's text, in characters.
    - first: the ids begin an echoed prompt, whose first token has no probability.
    """
    offsets, values, pieces, tops = [], [], [], []
    offset = begin
    for at, token in enumerate(ids):
        piece = tokenizer.piece(token)
        value = _logprob(token, at)
        alternatives = _alternative_tokens(token, max(0, top - 1), tokenizer.vocab_size)
        offsets.append(offset)
        pieces.append(piece)
        unknown = first and at == 0
        values.append(None if unknown else value)
        ranked = {piece: value}
        ranked.update(
            {
                tokenizer.piece(alternative): value - _LOGPROB_STEP * (place + 1)
                for place, alternative in enumerate(alternatives)
            }
        )
        tops.append(None if unknown else ranked)
        offset += len(piece)
    return {"text_offset": offsets, "token_logprobs": values, "tokens": pieces, "top_logprobs": tops}


def prompt_logprobs(tokenizer: Tokenizer, ids: list[int], top: int) -> list[dict[str, Any] | None]:
    """Returns ``prompt_logprobs``: None for the first token, then each token and ``top`` likelier
    ones.
    """
    entries_by_token: list[dict[str, Any] | None] = [None]
    for at, token in enumerate(ids[1:], 1):
        value = _logprob(token, at) - 8.0
        entries = {str(token): {"logprob": value, "rank": 100 + top, "decoded_token": tokenizer.piece(token)}}
        for place, alternative in enumerate(_alternative_tokens(token, top, tokenizer.vocab_size)):
            better = {
                "logprob": -1.0 - _LOGPROB_STEP * place,
                "rank": place + 1,
                "decoded_token": tokenizer.piece(alternative),
            }
            entries[str(alternative)] = better
        entries_by_token.append(entries)
    return entries_by_token
