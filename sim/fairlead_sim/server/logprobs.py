"""Made-up log-probabilities in the shapes that the engine sends; the same token at the same place always gets the same ones."""

from typing import Any

from fairlead_sim.tokenizer import Tokenizer

_GAP = 0.75


def _value(token: int, at: int) -> float:
    return -0.05 - ((token * 2654435761 + at * 40503) % 4096) / 1024.0


def _others(token: int, count: int, vocab_size: int) -> list[int]:
    """``count`` different tokens that were not chosen."""
    step = vocab_size // 7
    return [(token + (place + 1) * step) % vocab_size for place in range(count)]


def chat_content(tokenizer: Tokenizer, ids: list[int], begin: int, top: int) -> dict[str, Any]:
    """``logprobs`` of a chat choice; ``begin`` is the place of the first of ``ids`` in the answer."""
    content = []
    for at, token in enumerate(ids, begin):
        value = _value(token, at)
        ranked = [(token, value)]
        ranked += [
            (other, value - _GAP * (place + 1))
            for place, other in enumerate(_others(token, top - 1, tokenizer.vocab_size))
        ]
        entry = _entry(tokenizer, token, value)
        entry["top_logprobs"] = [_entry(tokenizer, each, worth) for each, worth in ranked[:top]]
        content.append(entry)
    return {"content": content}


def _entry(tokenizer: Tokenizer, token: int, value: float) -> dict[str, Any]:
    piece = tokenizer.piece(token)
    return {"token": piece, "logprob": value, "bytes": list(piece.encode())}


def completion(
    tokenizer: Tokenizer, ids: list[int], top: int, *, begin: int = 0, first: bool = False
) -> dict[str, Any]:
    """``logprobs`` of a completion; ``first``: these ids open an echoed prompt, whose first token has no probability."""
    offsets, values, pieces, tops = [], [], [], []
    offset = begin
    for at, token in enumerate(ids):
        piece = tokenizer.piece(token)
        value = _value(token, at)
        others = _others(token, max(0, top - 1), tokenizer.vocab_size)
        offsets.append(offset)
        pieces.append(piece)
        unknown = first and at == 0
        values.append(None if unknown else value)
        ranked = {piece: value}
        ranked.update({tokenizer.piece(other): value - _GAP * (place + 1) for place, other in enumerate(others)})
        tops.append(None if unknown else ranked)
        offset += len(piece)
    return {"text_offset": offsets, "token_logprobs": values, "tokens": pieces, "top_logprobs": tops}


def prompt(tokenizer: Tokenizer, ids: list[int], top: int) -> list[dict[str, Any] | None]:
    """``prompt_logprobs``: None for the first token, then the token itself and ``top`` likelier ones."""
    found: list[dict[str, Any] | None] = [None]
    for at, token in enumerate(ids[1:], 1):
        value = _value(token, at) - 8.0
        entries = {str(token): {"logprob": value, "rank": 100 + top, "decoded_token": tokenizer.piece(token)}}
        for place, other in enumerate(_others(token, top, tokenizer.vocab_size)):
            better = {"logprob": -1.0 - _GAP * place, "rank": place + 1, "decoded_token": tokenizer.piece(other)}
            entries[str(other)] = better
        found.append(entries)
    return found
