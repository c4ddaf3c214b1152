"""What was seen and decided, kept for a while: in memory for those who ask, and in files where somebody wants to keep it.

A Look is one model at one tick with all that the decision was made from, so that the pure core can be run over it again
(``fairlead replay-scaling``). In memory the oldest go when all together pass ``Limits.autoscaler_ring_bytes``. Files are JSON
lines, ``scaling-000001.jsonl`` and on; a full one is followed by the next, and the oldest are removed. A disk that is full costs the
recording, never a decision.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead_autoscaler.core import CoreState, ModelSpec, Observation, ScalingPlan, ScalingSettings
from fairlead_autoscaler.core.settings import DEFAULT_VALUES
from fairlead_autoscaler.enforcer import EnforcedPlan

_NUMBERED: Final = re.compile(r"^scaling-(\d{6})\.jsonl$")


@dataclass(frozen=True, slots=True)
class TickRecord:
    """One model at one tick; ``wall`` is Unix time. ``notes`` say what was wrong then, such as gateways that were missing. ``before``
    is what the core remembered until then; only some looks have it."""

    wall: float
    model: ModelSpec
    observation: Observation
    plan: ScalingPlan
    rulings: Mapping[str, EnforcedPlan] = field(default_factory=dict)
    mode: str = "Auto"
    notes: tuple[str, ...] = ()
    settings: Mapping[str, bool | float] = field(default_factory=dict)
    before: CoreState | None = None

    @property
    def scaling_settings(self) -> ScalingSettings:
        """The settings of the core; the default of those that are missing here."""
        known = {name: value for name, value in self.settings.items() if name in DEFAULT_VALUES}
        return ScalingSettings().with_values(known)


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(TickRecord).decode


def encode_record(look: TickRecord) -> bytes:
    """Without the line's end."""
    return _encode(look)


def decode_record(line: bytes) -> TickRecord:
    """Raises BadInput where it is none."""
    try:
        return _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput(f"a line is no look of the autoscaler: {error}") from error


class RecordBuffer:
    """The last looks of all models, as lines."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.autoscaler_ring_bytes
        self._bytes = 0
        self._lines: deque[tuple[float, str, bytes]] = deque()

    def add(self, look: TickRecord, line: bytes) -> None:
        """Keep one more."""
        self._lines.append((look.wall, look.model.name, line))
        self._bytes += len(line)
        while self._bytes > self._most and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft()[2])

    def last_at(self, model: str, wall: float | None = None) -> bytes | None:
        """The last of a model at or before a moment; None: there is none."""
        for when, name, line in reversed(self._lines):
            if name == model and (wall is None or when <= wall):
                return line
        return None

    def first_time(self, model: str) -> float | None:
        """When the first one of a model was that is still kept; None: there is none."""
        return next((when for when, name, _ in self._lines if name == model), None)

    def lines(self, model: str | None = None, since: float = 0.0) -> Iterator[bytes]:
        """Those of one model or of all, the oldest first."""
        for when, name, line in list(self._lines):
            if when >= since and model in (None, name):
                yield line


class RecordFiles:
    """A recording in ``directory``, which is made. ``problem`` is what kept the last line from being written."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits
        self._number = 0
        self._bytes = 0
        self.problem: str | None = None

    def add(self, line: bytes) -> None:
        """Write one more line."""
        try:
            path = self._path(len(line) + 1)
            with path.open("ab") as file:
                file.write(line + b"\n")
            self._bytes += len(line) + 1
            self.problem = None
        except OSError as error:
            self.problem = f"the recording cannot be written: {error.strerror or error}"

    def _path(self, more: int) -> Path:
        if self._number == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._number = max((number for number, _ in record_files(self._directory)), default=0)
            self._bytes = self._limits.autoscaler_file_bytes  # what an earlier process wrote is not gone on with
        if self._bytes + more > self._limits.autoscaler_file_bytes:
            self._number, self._bytes = self._number + 1, 0
            for number, path in record_files(self._directory):
                if number <= self._number - self._limits.autoscaler_files:
                    path.unlink(missing_ok=True)
        return self._directory / f"scaling-{self._number:06}.jsonl"


def record_files(directory: Path) -> list[tuple[int, Path]]:
    """The files of a recording with their numbers, in order."""
    found = ((_NUMBERED.match(path.name), path) for path in directory.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def read_records(path: Path) -> Iterator[TickRecord]:
    """The looks of a file, or of a folder's files, in order. A last line that was cut off is left out.

    Raises BadInput naming file and line of what is no look, and for a folder without a recording.
    """
    paths = [file for _, file in record_files(path)] if path.is_dir() else [path]
    if not paths:
        raise BadInput(f"{path} holds no recording", field="RECORDING", hint="it has files like scaling-000001.jsonl")
    for file in paths:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    yield decode_record(line)
                except BadInput as error:
                    raise BadInput(f"{file}:{number}: {error.message}", field="RECORDING") from error
