"""`docs/concepts/kv-index.md`: the sample of `index stats` is what the command prints."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from fairlead_cli.index.stats import IndexStats, InstanceContents, render_stats
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import BatchesLost, EventFrame, StreamComplete

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "kv-index.md"
COLUMNS = 130


def complete_reason() -> str:
    """The reason of an instance whose first batch was read."""
    outcomes = EventSequencer(replayable=False).on_live_frame(EventFrame(0, b""))
    return next(outcome.reason for outcome in outcomes if isinstance(outcome, StreamComplete))


def incomplete_reason() -> str:
    """The reason of an instance whose replay begins with batch 512."""
    sequencer = EventSequencer(replayable=True)
    sequencer.on_connected()
    outcomes = sequencer.on_replayed_frame(EventFrame(512, b""))
    lost = next(outcome for outcome in outcomes if isinstance(outcome, BatchesLost))
    return f"{lost.reason} ({lost.first} to {lost.last})"


def contents(**values: Any) -> InstanceContents:
    unknown: dict[str, Any] = dict.fromkeys(InstanceContents.__struct_fields__)
    common = {"trouble": "", "cpu": 0, "disk": 0, "block_size": 16, "orphans": 0}
    return InstanceContents(**(unknown | common | {"lag_seconds": 0.002} | values))


def test_sample_of_stats_is_what_the_command_prints() -> None:
    whole = contents(
        id="e-0/8000/0",
        complete=True,
        reason=complete_reason(),
        since_seconds=3_840.0,
        blocks=812,
        unique=655,
        gpu=812,
        evicted_age_seconds=192.0,
        following=391,
    )
    partial = contents(
        id="e-1/8000/0",
        complete=False,
        reason=incomplete_reason(),
        since_seconds=20.0,
        blocks=549,
        unique=392,
        gpu=549,
        following=266,
    )
    stats = IndexStats(
        model="default/tiny",
        leader="indexer-0",
        lease_seconds=1.0,
        epoch=1795219136832,
        sequence=418,
        stream_entries=1,
        stale_seconds=None,
        trouble="",
        unreadable={},
        blocks=1_204,
        hints=0,
        instances=[whole, partial],
    )
    out = io.StringIO()
    Console(file=out, width=COLUMNS, force_terminal=False).print(render_stats([stats]))
    printed = "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
    assert f"$ fairlead index stats\n{printed}\n```" in PAGE.read_text(encoding="utf-8"), printed
