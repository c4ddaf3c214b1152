"""The reader of Azure's published LLM traces: arrivals and lengths, without content.

Each prompt is unique here, since its content is unknown; routing finds nothing of it in a cache.

Source: Microsoft, *AzurePublicDataset*, traces of 2023 and 2024; CSV with the columns TIMESTAMP,
ContextTokens and GeneratedTokens.
"""

import csv
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path

from fairlead_sim.workload.traces import MAX_PROMPT_TOKENS, TRACE_BLOCK_TOKENS, TraceError, TraceRequest

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


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
