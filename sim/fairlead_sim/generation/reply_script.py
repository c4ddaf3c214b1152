"""The script of a reply: the whole answer of one choice, drawn before its first token.

Every token of a free answer is a space and three letters, so the answer is a byte string cut every
four bytes. Its text tokenizes to the same ids, so that the next turn of a conversation finds its
blocks. A stop string or a natural end only shortens the script. The scheduler sees a number of
tokens. An answer of a required form has its own token ends.

Deterministic tokens at temperature 0: each follows from all tokens before it.

An answer that is cut anywhere and sent back as the end of a prompt continues unchanged, on any
engine with the same seed. That makes stream resumption testable. A token is drawn from the key of
the last full block, which stands for all blocks before, and the tokens behind it. One draw in 173
ends the answer.

Made-up log-probabilities in vLLM's form; equal tokens at equal positions have equal values.

Answers with a required form: JSON of a schema, any JSON object, or a choice; a small one that
fits.

The supported parts of a schema are types, properties, required, enum, const, items, references,
unions and lower bounds. Anything else becomes a string.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead_sim.engine.block_pool import chain_key
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.http.fields import RequestFields

TOKEN_BYTES = 4
MEDIAN_NATURAL_TOKENS = 120
MAX_NATURAL_TOKENS = 2_000

_END_ODDS = 173
MAX_GREEDY_TOKENS = 2_000

_LOGPROB_STEP = 0.75

_MAX_DEPTH = 32
_MAX_OPTIONAL_DEPTH = 3
_MAX_PARTS = 1_000
_FILLER_WORD = "simulated"
_TEXTS = ("the day after tomorrow", 'said "no\\" {twice}', "5 € in Zürich", "first line\nsecond line", "", "</end>")


@dataclass(frozen=True, slots=True)
class ReplyLimits:
    """The bounds of a reply and what ends it.

    - may_end_naturally: it may end before ``max_tokens``.
    - length_factor: of its natural length.
    - greedy_decoder: yields the tokens in place of a seed (``GreedyDecoder.decode``).
    """

    max_tokens: int
    min_tokens: int = 0
    may_end_naturally: bool = False
    length_factor: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    forced_text: str | None = None
    greedy_decoder: Callable[[int, int | None], tuple[list[int], bool]] | None = None


@dataclass(frozen=True, slots=True)
class ReplyScript:
    """The tokens of a reply and its text.

    - ids: all tokens; a last token that only ends the reply has no text.
    - held_back: characters that a stream delays until they cannot be part of a stop string.
    - ends: the end of each token's text, if not every four bytes.
    - opening: marks of reasoning that the prompt has opened, and this reply is inside of.
    """

    ids: list[int]
    text: bytes
    reason: str
    stop_reason: str | int | None = None
    held_back: int = 0
    ends: list[int] | None = None
    opening: str = ""

    @property
    def is_even(self) -> bool:
        """Whether every token but the last has four bytes and is sent without delay."""
        return self.ends is None and not self.held_back

    def text_bytes(self, tokens: int) -> int:
        """Returns how many bytes of ``text`` the first ``tokens`` tokens have."""
        if tokens >= len(self.ids):
            return len(self.text)
        if self.ends is not None:
            return self.ends[tokens - 1] if tokens else 0
        return min(len(self.text), tokens * TOKEN_BYTES)

    def streamed_bytes(self, tokens: int) -> int:
        """Returns how many bytes of ``text`` a stream's client has after ``tokens`` tokens."""
        generated_bytes = self.text_bytes(tokens)
        return generated_bytes if tokens >= len(self.ids) else max(0, generated_bytes - self.held_back)


def natural_length(seed: str, factor: float = 1.0) -> int:
    """Returns the natural length of an answer: log-normal, 2 to 2,000 tokens, median 120 times
    ``factor``.
    """
    tokens = round(factor * MEDIAN_NATURAL_TOKENS * math.exp2(Random(seed).gauss(0.0, 1.0)))
    return max(2, min(MAX_NATURAL_TOKENS, tokens))


def write_script(tokenizer: Tokenizer, seed: str, limits: ReplyLimits) -> ReplyScript:
    """Returns the script for a seed and limits; equal arguments give equal scripts."""
    if limits.forced_text is not None:
        return _forced_script(tokenizer, limits.forced_text, limits.max_tokens)
    ids, text, ends_itself = _unstopped_reply(tokenizer, seed, limits)
    held_back = 0 if limits.include_stop else max((len(string) for string in limits.stop), default=1) - 1

    token_at = _first_stop_token(ids, limits)
    stopped = _first_stop_string(text, limits)
    if stopped is not None:
        at, string = stopped
        count = -(-(at + len(string)) // TOKEN_BYTES)
        if token_at is None or count <= token_at:
            cut = at + len(string) if limits.include_stop else at
            return ReplyScript(ids[:count], text[:cut].encode(), "stop", string, held_back)
    if token_at is not None:
        return ReplyScript(
            ids[: token_at + 1], text[: token_at * TOKEN_BYTES].encode(), "stop", ids[token_at], held_back
        )
    if ends_itself:
        return ReplyScript([*ids, tokenizer.eos], text.encode(), "stop", None, held_back)
    return ReplyScript(ids, text.encode(), "length", None, held_back)


def _unstopped_reply(tokenizer: Tokenizer, seed: str, limits: ReplyLimits) -> tuple[list[int], str, bool]:
    """Returns tokens and text before any stop, and whether they end naturally."""
    if limits.greedy_decoder is not None:
        ids, ends_itself = limits.greedy_decoder(
            limits.max_tokens, limits.min_tokens if limits.may_end_naturally else None
        )
        return ids, tokenizer.decode(ids), ends_itself
    natural = limits.max_tokens
    if limits.may_end_naturally:
        natural = max(natural_length(seed, limits.length_factor), limits.min_tokens + 1)
    ends_itself = natural < limits.max_tokens
    spoken = natural - 1 if ends_itself else limits.max_tokens
    return tokenizer.random_tokens(spoken, seed), tokenizer.random_text(spoken, seed), ends_itself


def _forced_script(tokenizer: Tokenizer, text: str, max_tokens: int) -> ReplyScript:
    return script_of(tokenizer, tokenizer.encode(text), max_tokens, ends_itself=True)


def script_of(
    tokenizer: Tokenizer, ids: list[int], max_tokens: int, *, ends_itself: bool, opening: str = ""
) -> ReplyScript:
    """Returns the script of given tokens, cut at ``max_tokens`` but not within a character.

    The end of a character that the prompt has begun is not shown.
    """
    pieces = [tokenizer.piece_bytes(token) for token in ids]
    raw = b"".join(pieces)
    begun = next((at for at, byte in enumerate(raw) if byte & 0xC0 != 0x80), len(raw))
    raw = raw[begun:]
    raw = raw[: len(raw.decode(errors="ignore").encode())]
    starts = [at for at, byte in enumerate(raw) if byte & 0xC0 != 0x80] + [len(raw)]
    ends = [starts[max(0, bisect_left(starts, end - begun + 1) - 1)] for end in accumulate(map(len, pieces))]
    if ends_itself and len(ids) < max_tokens:
        return ReplyScript([*ids, tokenizer.eos], raw, "stop", ends=[*ends, len(raw)], opening=opening)
    ids = ids[:max_tokens]
    return ReplyScript(ids, raw[: ends[len(ids) - 1] if ids else 0], "length", ends=ends, opening=opening)


def _first_stop_token(ids: list[int], wish: ReplyLimits) -> int | None:
    if not wish.stop_token_ids:
        return None
    return next((at for at, token in enumerate(ids) if token in wish.stop_token_ids and at >= wish.min_tokens), None)


def _first_stop_string(text: str, wish: ReplyLimits) -> tuple[int, str] | None:
    """Returns the position and text of the stop string that completes first, or None.

    Stop strings that end within ``min_tokens`` do not count.
    """
    matches: list[tuple[int, str]] = []
    for string in wish.stop:
        at = text.find(string, max(0, wish.min_tokens * TOKEN_BYTES - len(string) + 1))
        if string and at != -1:
            matches.append((at, string))
    return min(matches, key=lambda match: match[0] + len(match[1]), default=None)


@dataclass(frozen=True, slots=True)
class GreedyDecoder:
    """The greedy decoding of an engine. Engines with equal values give equal answers."""

    tokenizer: Tokenizer
    block_tokens: int
    seed: int

    def decode(self, key: int, rest: Sequence[int], count: int, min_tokens: int | None) -> tuple[list[int], bool]:
        """Returns up to ``count`` tokens behind a prompt, and whether the answer ends naturally.

        - key, rest: the key of the prompt's last full block, and the tokens behind it.
        - min_tokens: the answer may end naturally after these, and does so after
          ``MAX_GREEDY_TOKENS``. None: it never does.
        """
        tail = array("I", rest)
        generated: list[int] = []
        max_tokens = count if min_tokens is None else min(count, MAX_GREEDY_TOKENS)
        while len(generated) < max_tokens:
            hashed = xxh3_64_intdigest(tail.tobytes(), key ^ self.seed)
            if min_tokens is not None and len(generated) > min_tokens and (hashed >> 16) % _END_ODDS == 0:
                return generated, True
            token = self.tokenizer.word_token(hashed & 0xFFFF)
            generated.append(token)
            tail.append(token)
            if len(tail) == self.block_tokens:
                key, tail = chain_key(key, tail), array("I")
        return generated, len(generated) < count


def _logprob(token: int, at: int) -> float:
    return -0.05 - ((token * 2654435761 + at * 40503) % 4096) / 1024.0


def _alternative_tokens(token: int, count: int, vocab_size: int) -> list[int]:
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


def parse_forced_text(fields: RequestFields) -> str | None:
    """Returns the answer that ``response_format`` or ``structured_outputs`` require; None if
    the answer is free.
    """
    form = fields.mapping("response_format")
    if form is not None:
        kind = form.get("type")
        if kind == "json_object":
            return _json_text({"answer": _FILLER_WORD})
        if kind == "json_schema":
            named = form.get("json_schema")
            schema = named.get("schema") if isinstance(named, dict) else None
            return _json_text(minimal_value(schema if isinstance(schema, dict) else {"type": "object"}))
        if kind not in (None, "text"):
            expected = "Input should be 'text', 'json_object' or 'json_schema'"
            fields.add_wrong("literal_error", "response_format.type", expected, kind)
    wish = fields.mapping("structured_outputs")
    if wish is not None:
        choices = wish.get("choice")
        if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
            return str(choices[0])
        if isinstance(wish.get("json"), dict):
            return _json_text(minimal_value(wish["json"]))
        if wish.get("json_object"):
            return _json_text({"answer": _FILLER_WORD})
    return None


def minimal_value(schema: dict[str, Any]) -> Any:
    return sample_value(schema, 0)


def sample_value(schema: dict[str, Any], variant: int) -> Any:
    return _ValueBuilder(schema, variant).build(schema, 0)


class _ValueBuilder:
    """The builder of one value. Bounds on depth and parts end endless schemas with nulls."""

    def __init__(self, root: dict[str, Any], variant: int) -> None:
        self._root = root
        self._variant = variant
        self._parts_left = _MAX_PARTS

    def build(self, schema: dict[str, Any], depth: int) -> Any:
        self._parts_left -= 1
        if depth > _MAX_DEPTH or self._parts_left < 0:
            return None
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][self._variant % len(schema["enum"])]
        if isinstance(schema.get("$ref"), str):
            return self.build(_resolve_reference(schema["$ref"], self._root), depth + 1)
        for union in ("anyOf", "oneOf", "allOf"):
            options = schema.get(union)
            if isinstance(options, list) and options and isinstance(options[0], dict):
                return self.build(options[0], depth + 1)
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth)
        if kind == "array":
            items = schema.get("items")
            inner = items if isinstance(items, dict) else {}
            return [self.build(inner, depth + 1) for _ in range(min(64, _integer_bound(schema, "minItems")))]
        text = _TEXTS[(self._variant + self._parts_left) % len(_TEXTS)] if self._variant else _FILLER_WORD
        return _plain_value(schema, kind, self._variant, text)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Returns the required properties, or all near the root if none is marked required."""
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        names = required if isinstance(required, list) else list(known) if depth <= _MAX_OPTIONAL_DEPTH else []
        return {
            name: self.build(known[name] if isinstance(known.get(name), dict) else {}, depth + 1)
            for name in names
            if isinstance(name, str)
        }


def _plain_value(schema: dict[str, Any], kind: object, variant: int, text: str) -> Any:
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        least = math.ceil(low) + ("exclusiveMinimum" in schema) if isinstance(low, int | float) else 0
        is_bounded = schema.keys() & {"maximum", "exclusiveMaximum", "multipleOf"}
        return least if is_bounded else least + variant
    if kind == "boolean":
        return variant % 2 == 0
    if kind == "null":
        return None
    longest = schema.get("maxLength")
    return text.ljust(min(4_096, _integer_bound(schema, "minLength")), "-")[
        : longest if isinstance(longest, int) and longest >= 0 else None
    ]


def _resolve_reference(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    node: Any = root
    for name in reference.split("/")[1:]:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _integer_bound(schema: dict[str, Any], name: str) -> int:
    bound = schema.get(name, 0)
    return bound if isinstance(bound, int) else 0


def _json_text(document: Any) -> str:
    return msgspec.json.encode(document).decode()
