"""A campaign: inputs from one seed; each finding is made small and kept in a file."""

import hashlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.mutate import Mutator
from fuzzing.target import Target

_FINDINGS_MOST = 10
_SHRINKS = 4_000


@dataclass(slots=True)
class Finding:
    """A broken property: the place, the smallest input and its file."""

    target: str
    where: str
    data: bytes
    file: str = ""

    @property
    def replay(self) -> str:
        """Returns the command that repeats it."""
        return f".venv/bin/python scripts/nightly_fuzz.py --replay {self.target} {self.file}"


@dataclass(slots=True)
class Report:
    """The result of a run. ``kinds`` counts the different kinds of results."""

    target: str
    seed: str
    inputs: int = 0
    kinds: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def campaign(
    target: Target, seed: str, inputs: int, out: Path | None = None, on_progress: Callable[[int], None] | None = None
) -> Report:
    """Tries ``inputs``, the target's own seeds first. Writes findings to ``out``."""
    report = Report(target.name, seed)
    mutator = Mutator(f"{target.name} {seed}", target.seeds, target.words, target.pieces, target.grow)
    kinds: set[int] = set()
    places: set[str] = set()
    begun = time.monotonic()
    check, make, seeds = target.check, mutator.next, iter(target.seeds)
    for number in range(inputs):
        data = next(seeds, None) or make()
        try:
            kind = hash(check(data))
        except Exception as error:  # noqa: BLE001 - any exception is a finding
            place = where(error)
            if place not in places and len(places) < _FINDINGS_MOST:
                places.add(place)
                report.findings.append(found(target, place, data, out))
            continue
        if kind not in kinds and len(kinds) < 100_000:
            kinds.add(kind)
            mutator.keep(data)
        if on_progress is not None and not number % 100_000:
            on_progress(number)
    report.inputs, report.kinds = inputs, len(kinds)
    report.seconds = time.monotonic() - begun
    return report


def where(error: BaseException) -> str:
    """Returns the place and type of an exception, by which findings are compared."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    own = [entry for entry in traceback.extract_tb(error.__traceback__) if "fuzzing" in entry.filename][-1]
    text = str(error).splitlines()[0][:100] if str(error) else ""
    return (
        f"{type(error).__name__} {Path(own.filename).name}:{own.lineno} {Path(frame.filename).name}:{frame.name} {text}"
    )


def found(target: Target, place: str, data: bytes, out: Path | None) -> Finding:
    """Makes an input as small as possible while it breaks the same property, and keeps it."""
    head = place.split(" ")[:2]

    def same(smaller: bytes) -> bool:
        try:
            target.check(smaller)
        except Exception as error:  # noqa: BLE001 - see above
            return where(error).split(" ")[:2] == head
        return False

    small = shrunk(data, same)
    finding = Finding(target.name, place, small)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        name = out / f"{target.name}-{hashlib.sha256(small).hexdigest()[:12]}.bin"
        name.write_bytes(small)
        finding.file = str(name)
    return finding


def shrunk(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    """Leaves out ever smaller parts as long as ``same`` holds."""
    tries = 0
    size = max(1, len(data) // 2)
    while size and tries < _SHRINKS:
        at, before = 0, len(data)
        while at < len(data) and tries < _SHRINKS:
            tries += 1
            smaller = data[:at] + data[at + size :]
            if same(smaller):
                data = smaller
            else:
                at += size
        if len(data) == before or size > 1:
            size = min(size // 2, max(1, len(data) // 2)) if size > 1 else 0
    return data
