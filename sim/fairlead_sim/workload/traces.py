"""The request of a trace, the reader of Mooncake's format, and changes of arrival times.

A prompt is a chain of 512-token blocks named by ids. Two requests share exactly the first blocks
with equal ids.

The reader of Azure's published LLM traces: arrivals and lengths, without content.

Each prompt is unique here, since its content is unknown; routing finds nothing of it in a cache.

Source: Microsoft, *AzurePublicDataset*, traces of 2023 and 2024; CSV with the columns TIMESTAMP,
ContextTokens and GeneratedTokens.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path

import msgspec

from fairlead.errors import BadInput

TRACE_BLOCK_TOKENS = 512
MAX_PROMPT_TOKENS = 20_480
"""The bound of the published studies, which leave longer prompts out."""
BUNDLED_TRACE = Path(__file__).parent / "data" / "mooncake-conversation-1000.jsonl.gz"
"""The first 1,000 requests of the Mooncake conversation trace with at most 20,480 prompt tokens.
Lines of longer prompts are blank, so that each request keeps its line number. Source: data/NOTICE.
"""

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: arrival in seconds from the start, lengths, and the block ids of its prompt."""

    id: str
    arrival: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    session: str | None = None
    tenant: str | None = None


class TraceError(BadInput):
    """Raised for an unusable trace file; the message begins with file and line."""


class _MooncakeLine(msgspec.Struct):
    """A line of Mooncake's format; other keys are ignored."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_mooncake(
    path: str | Path, *, max_prompt: int = MAX_PROMPT_TOKENS, limit: int | None = None
) -> list[TraceRequest]:
    """Returns the file's first ``limit`` requests of at most ``max_prompt`` tokens, by arrival.

    path: JSON lines, compressed if its name ends with ``.gz``.

    Raises TraceError with the line's number.
    """
    requests: list[TraceRequest] = []
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for number, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        line = _parse(decoder, text, f"{path}:{number}")
        if line.input_length <= max_prompt:
            requests.append(_request(line, number))
        if limit is not None and len(requests) >= limit:
            break
    if not requests:
        raise TraceError(f"{path}: no request of at most {max_prompt} prompt tokens", field="trace")
    requests.sort(key=lambda request: request.arrival)
    return requests


def _lines(path: str | Path) -> Iterator[bytes]:
    """Yields the lines of a file, which is decompressed if its name ends with ``.gz``."""
    open_file = gzip.open if str(path).endswith(".gz") else open
    try:
        with open_file(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"{path}: the trace cannot be read: {reason}", field="trace") from error


def _parse(decoder: "msgspec.json.Decoder[_MooncakeLine]", text: bytes, where: str) -> _MooncakeLine:
    try:
        line = decoder.decode(text)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        hint = "each line is {timestamp (ms), input_length, output_length, hash_ids}"
        raise TraceError(f"{where}: {error}", field="trace", hint=hint) from error
    blocks = -(-line.input_length // TRACE_BLOCK_TOKENS)
    if line.timestamp < 0:
        raise TraceError(f"{where}: timestamp is negative", field="timestamp")
    if line.input_length < 1 or line.output_length < 1:
        raise TraceError(f"{where}: input_length and output_length must be at least 1", field="input_length")
    if len(line.hash_ids) != blocks:
        raise TraceError(
            f"{where}: {line.input_length} tokens are {blocks} blocks of {TRACE_BLOCK_TOKENS}, "
            f"but hash_ids has {len(line.hash_ids)}",
            field="hash_ids",
        )
    return line


def _request(line: _MooncakeLine, number: int) -> TraceRequest:
    return TraceRequest(
        id=f"r{number}",
        arrival=line.timestamp / 1000.0,
        prompt_tokens=line.input_length,
        output_tokens=line.output_length,
        blocks=tuple(line.hash_ids),
    )


def spread_ties(requests: Sequence[TraceRequest]) -> list[TraceRequest]:
    """Returns the requests with equal timestamps spread evenly up to the next timestamp.

    The last group gets the gap before it.
    """
    starts = [i for i, request in enumerate(requests) if i == 0 or request.arrival != requests[i - 1].arrival]
    spread: list[TraceRequest] = []
    gap = 0.0
    for position, start in enumerate(starts):
        is_last = position + 1 == len(starts)
        end = len(requests) if is_last else starts[position + 1]
        if not is_last:
            gap = requests[end].arrival - requests[start].arrival
        size = end - start
        spread += [
            replace(requests[i], arrival=requests[i].arrival + gap * (i - start) / size) for i in range(start, end)
        ]
    return spread


def at_rate(requests: Sequence[TraceRequest], rate: float) -> list[TraceRequest]:
    """Returns the requests from time 0 on, at a mean rate of ``rate`` requests per second."""
    if rate <= 0:
        raise BadInput(f"the rate must be positive, got {rate}", field="rate")
    if not requests:
        return []
    first = requests[0].arrival
    span = requests[-1].arrival - first
    if span <= 0:
        return [replace(request, arrival=i / rate) for i, request in enumerate(requests)]
    scaled = (len(requests) - 1) / rate
    return [replace(request, arrival=(request.arrival - first) / span * scaled) for request in requests]


def ideal_cached_share(requests: Sequence[TraceRequest]) -> float:
    """Returns the share (0..1) of prompt tokens that one endless cache would have."""
    cached: set[int] = set()
    reused = total = 0
    for request in requests:
        matched = 0
        for block in request.blocks:
            if block not in cached:
                break
            matched += 1
        reused += min(matched * TRACE_BLOCK_TOKENS, request.prompt_tokens)
        total += request.prompt_tokens
        cached.update(request.blocks)
    return reused / total if total else 0.0


def read_azure(
    path: str | Path, *, max_prompt: int = MAX_PROMPT_TOKENS, limit: int | None = None
) -> list[TraceRequest]:
    """Returns the first ``limit`` requests of at most ``max_prompt`` tokens, by arrival.

    Raises TraceError with the line's number.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in _parse_rows(csv.DictReader(file), str(path)) if row[1] <= max_prompt]
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: the trace cannot be read: {error}", field="trace") from error
    if not rows:
        raise TraceError(f"{path}: no request of at most {max_prompt} prompt tokens", field="trace")
    rows.sort()
    start, new_ids = rows[0][0], count()
    return [
        TraceRequest(
            id=f"r{number}",
            arrival=(at - start).total_seconds(),
            prompt_tokens=prompt,
            output_tokens=output,
            blocks=tuple(next(new_ids) for _ in range(-(-prompt // TRACE_BLOCK_TOKENS))),
        )
        for number, (at, prompt, output) in enumerate(rows[:limit])
    ]


def _parse_rows(reader: "csv.DictReader[str]", path: str) -> Iterator[tuple[datetime, int, int]]:
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        hint = f"the first line names the columns {', '.join(COLUMNS)}"
        raise TraceError(f"{path}:1: there is no column {missing[0]}", field="trace", hint=hint)
    for number, row in enumerate(reader, 2):
        when, prompt, output = (row[name] or "" for name in COLUMNS)
        try:
            seconds, _, fraction = when.partition(".")
            at = datetime.fromisoformat(f"{seconds}.{fraction[:6] or '0':0<6}")
            tokens = int(prompt), int(output)
        except ValueError as error:
            raise TraceError(
                f"{path}:{number}: {error}", field="trace", hint="2023-11-16 18:15:46.6805900,374,44"
            ) from error
        if min(tokens) < 1:
            raise TraceError(f"{path}:{number}: ContextTokens and GeneratedTokens must be at least 1", field="trace")
        yield at, *tokens
