"""Recorded batches of real engines and their responses while idle: each response was predicted.

Source: ``make e2e-vllm`` (part ``index``) writes {"ranks": [[numbers, payloads]], "happened":
[[what, rank, batches before, …]]}.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead_kvstore.blockstore.block_hash import block_extras, block_hashes, cached_tokens, chain_root
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import EventFrame
from fairlead_kvstore.reader.event_application import apply_outcomes
from fairlead_testing.kvstore.block_store import cached_depths, report_adapter_source

RECORDINGS = Path(__file__).parents[2] / "recordings" / "vllm" / "kv-events"
MODEL = "default/tiny"
SIZE = 32
NAMES = sorted(path.stem for path in RECORDINGS.glob("*.recording"))


class Playing:
    """A block store that reads a recording. Times are the engine's; adapter sources are read as
    often as an indexer does.
    """

    def __init__(self, name: str) -> None:
        self.whole: dict[str, Any] = msgspec.msgpack.decode((RECORDINGS / f"{name}.recording").read_bytes())
        self.truth = BlockStore()
        self.streams = []
        self.read = [0] * len(self.whole["ranks"])
        self.places: dict[str, str] = {}
        self.now = 0.0
        for rank, _ in enumerate(self.whole["ranks"]):
            self.truth.attach(str(rank), MODEL, 0.0)
            self.streams.append(EventSequencer(replayable=False))

    def upto(self, rank: int, count: int) -> None:
        """Reads the batches up to a number."""
        numbers, payloads = self.whole["ranks"][rank]
        for number, payload in zip(numbers[self.read[rank] : count], payloads[self.read[rank] : count], strict=True):
            self.now = msgspec.msgpack.decode(payload)[0]
            apply_outcomes(
                self.truth, str(rank), self.streams[rank].on_live_frame(EventFrame(b"", number, payload)), self.now
            )
            self.read_models()
        self.read[rank] = count

    def read_models(self) -> None:
        """Reads ``/v1/models``."""
        for rank, _ in enumerate(self.streams):
            for name, place in self.places.items():
                report_adapter_source(self.truth, str(rank), name, place, 1.0)

    def predicted(self, rank: int, tokens: list[int], adapter: str | None, salt: str | None) -> int:
        chain = block_hashes(
            chain_root(MODEL, adapter), tokens, SIZE, block_extras(len(tokens) // SIZE, SIZE, salt=salt)
        )
        return cached_tokens(cached_depths(self.truth, str(rank), chain)[StorageTier.GPU], len(tokens), SIZE)


@pytest.mark.parametrize("name", NAMES)
def test_every_response_of_an_idle_engine_was_predicted(name: str) -> None:
    playing = Playing(name)
    asked = 0
    for what, rank, count, *more in playing.whole["happened"]:
        playing.upto(rank, count)
        if what == "asked":
            tokens, adapter, salt, cached = more
            assert playing.predicted(rank, tokens, adapter, salt) == cached, (
                asked,
                len(tokens),
                adapter,
                salt,
            )
            asked += 1
        elif what == "loaded":
            playing.places[more[0]] = more[1]
            playing.read_models()
        elif what == "cleared":
            playing.truth.on_cleared_by_fairlead(str(rank), playing.now)
        elif what == "killed":
            playing.places.clear()
    assert asked >= 10


def test_recordings_cover_the_required_cases() -> None:
    assert NAMES != []
