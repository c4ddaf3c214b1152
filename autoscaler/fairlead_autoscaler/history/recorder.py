"""Recorder: the records of recent ticks, in memory and in files.

A record holds all inputs of a decision, so that the pure core can run over it again (`fairlead
replay-scaling`). In memory the oldest records go once all together exceed
`AUTOSCALER_RING_BYTES`. Files are JSON lines, `scaling-000001.jsonl` and so on. After a full
file the next one begins, and the oldest are removed. A full disk costs records, never a decision.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.core import CoreState, ModelSpec, Observation, ScalingPlan, ScalingSettings
from fairlead_autoscaler.core.settings import DEFAULT_VALUES
from fairlead_autoscaler.scaling_policy import EnforcedPlan

_NUMBERED: Final = re.compile(r"^scaling-(\d{6})\.jsonl$")
AUTOSCALER_RING_BYTES: Final = 32 * 1024 * 1024
"""Limit: ticks kept in memory: two hours of ten small models."""
AUTOSCALER_FILE_BYTES: Final = 16 * 1024 * 1024
"""Limit: one file of a recording; the next follows."""
AUTOSCALER_FILES: Final = 32
"""Limit: files of a recording; the oldest are removed."""


@dataclass(frozen=True, slots=True)
class TickRecord:
    """One model at one tick.

    wall: Unix seconds.
    notes: problems at that time, such as missing gateways.
    settings: of the core, by their flat names.
    before: the core's state before the tick; only some records have it.
    drain_saved_seconds: replica-seconds by pool, since the start (`drain_savings`).
    """

    wall: float
    model: ModelSpec
    observation: Observation
    plan: ScalingPlan
    rulings: Mapping[str, EnforcedPlan] = field(default_factory=dict)
    mode: str = "Auto"
    notes: tuple[str, ...] = ()
    settings: Mapping[str, bool | int | float] = field(default_factory=dict)
    before: CoreState | None = None
    drain_saved_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def scaling_settings(self) -> ScalingSettings:
        known = {name: value for name, value in self.settings.items() if name in DEFAULT_VALUES}
        return ScalingSettings().with_values(known)


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(TickRecord).decode


def encode_record(record: TickRecord) -> bytes:
    return _encode(record)


def decode_record(line: bytes) -> TickRecord:
    """Returns the record of a line. Raises BadInput for anything else."""
    try:
        return _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput(f"a line is not a record of the autoscaler: {error}") from error


class RecordBuffer:
    """The latest records of all models, as lines."""

    def __init__(self, max_bytes: int = AUTOSCALER_RING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lines: deque[tuple[float, str, bytes]] = deque()

    def add(self, record: TickRecord, line: bytes) -> None:
        self._lines.append((record.wall, record.model.name, line))
        self._bytes += len(line)
        while self._bytes > self._max_bytes and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft()[2])

    def last_at(self, model: str, wall: float | None = None) -> bytes | None:
        """Returns the last record of a model, at or before the time `wall`; None if there is
        none.
        """
        for at, name, line in reversed(self._lines):
            if name == model and (wall is None or at <= wall):
                return line
        return None

    def first_time(self, model: str) -> float | None:
        """Returns the time of the first record of a model; None if there is none."""
        return next((at for at, name, _ in self._lines if name == model), None)

    def lines(self, model: str | None = None, since: float = 0.0) -> Iterator[bytes]:
        """Yields the records of one model, or of all, the oldest first.

        since: Unix seconds.
        """
        for at, name, line in list(self._lines):
            if at >= since and model in (None, name):
                yield line


class RecordFiles:
    """A recording in files. The first record creates the directory.

    problem: why the last record could not be written; None: it was.
    """

    def __init__(
        self, directory: Path, *, max_bytes: int = AUTOSCALER_FILE_BYTES, max_files: int = AUTOSCALER_FILES
    ) -> None:
        self._directory = directory
        self._max_bytes, self._max_files = max_bytes, max_files
        self._number = 0
        self._bytes = 0
        self.problem: str | None = None

    def add(self, line: bytes) -> None:
        """Writes one record, or nothing of it."""
        try:
            self._append(self._path(len(line) + 1), line + b"\n")
            self.problem = None
        except OSError as error:
            self.problem = f"the recording cannot be written: {error.strerror or error}"

    def _append(self, path: Path, data: bytes) -> None:
        """Appends to a file. If not all of it can be written, truncates the file to its former
        size, and raises OSError.
        """
        size, left = self._bytes, memoryview(data)
        with path.open("ab", buffering=0) as file:
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                self._bytes = self._max_bytes  # without the truncation, the next file follows
                file.truncate(size)
                self._bytes = size
                raise
        self._bytes += len(data)

    def _path(self, bytes_to_write: int) -> Path:
        if self._number == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._number = max((number for number, _ in record_files(self._directory)), default=0)
            self._bytes = self._max_bytes  # a file of an earlier process gets no further records
        if self._bytes + bytes_to_write > self._max_bytes:
            self._number, self._bytes = self._number + 1, 0
            for number, path in record_files(self._directory):
                if number <= self._number - self._max_files:
                    path.unlink(missing_ok=True)
        return self._directory / f"scaling-{self._number:06}.jsonl"


def record_files(directory: Path) -> list[tuple[int, Path]]:
    matches = ((_NUMBERED.match(path.name), path) for path in directory.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def read_records(path: Path) -> Iterator[TickRecord]:
    """Yields the records of a file, or of all files of a directory, in order. An incomplete last
    line is skipped.

    Raises BadInput with file and line of anything that is no record, and for a directory without a
    recording.
    """
    paths = [file for _, file in record_files(path)] if path.is_dir() else [path]
    if not paths:
        raise BadInput(
            f"{path} has no recording", field="RECORDING", hint="a recording has files like scaling-000001.jsonl"
        )
    for file in paths:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    yield decode_record(line)
                except BadInput as error:
                    raise BadInput(f"{file}:{number}: {error.message}", field="RECORDING") from error
