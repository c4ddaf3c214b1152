"""The fuzzers themselves: they find broken properties, and inputs of earlier findings pass."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from fuzzing.campaign import campaign
from fuzzing.mutate import Mutator
from fuzzing.target import cuttings
from fuzzing.targets import TARGETS

from fairlead_testing.module_files import load_module

HERE = Path(__file__).parent
REGRESSIONS = sorted(path for path in (HERE / "regressions").glob("*/*"))
LONGEST = 20_000


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_broke_a_property_does_not_any_more(path: Path) -> None:
    TARGETS[path.parent.name].check(path.read_bytes())


def _test_module(path: str) -> ModuleType:
    return load_module("corpus", HERE.parent / "gateway" / path)


def corpora() -> Iterator[tuple[str, str, bytes]]:
    """(target, name, bytes) of what other tests send."""
    wire = _test_module("http/test_hostile_bytes.py")
    bodies = _test_module("openai/test_hostile_bodies.py")
    for table in (wire.MALFORMED, wire.LEGAL):
        yield from (("head", name, data) for name, data in table.items())
    yield from (("splice", name, body) for name, (body, _) in bodies.BAD.items())
    yield from (("splice", name, body) for name, body in bodies.GOOD_ONES.items())


def test_hostile_inputs_of_other_tests_and_their_mutations_break_no_property() -> None:
    inputs = list(corpora())
    for name, target in TARGETS.items():
        known = [data for of, _, data in inputs if of == name and len(data) <= LONGEST]
        for data in known:
            target.check(data)
        if known:
            mutator = Mutator("corpora", known, target.words, target.pieces)
            for _ in range(250):
                target.check(mutator.next())


def test_the_same_seed_gives_the_same_inputs_and_another_one_others() -> None:
    target = TARGETS["head"]

    def some(seed: str) -> list[bytes]:
        mutator = Mutator(seed, target.seeds, target.words, target.pieces, target.grow)
        return [mutator.next() for _ in range(200)]

    assert some("a") == some("a") != some("b")


@pytest.mark.parametrize("size", [0, 1, 2, 7, 300])
def test_cut_bytes_are_the_bytes(size: int) -> None:
    for number in range(64):
        data = bytes((number + n) % 251 for n in range(size))
        assert all(b"".join(pieces) == data for pieces in cuttings(data))


def test_a_broken_property_is_found_made_small_kept_and_can_be_repeated(tmp_path: Path) -> None:
    def check(data: bytes) -> str:
        assert b"chunked" not in data or b"close" not in data, "both"
        return "fine"

    broken = replace(TARGETS["head"], check=check)
    report = campaign(broken, "1", 5_000, tmp_path)
    (finding,) = report.findings
    assert sorted(re.findall(rb"chunked|close", finding.data)) == [b"chunked", b"close"]
    assert len(finding.data) == len(b"chunkedclose")
    assert Path(finding.file).read_bytes() == finding.data
    assert finding.file in finding.replay


def nightly(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE.parents[1] / "scripts" / "nightly_fuzz.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_the_nightly_script_writes_its_report_and_repeats_one_input(tmp_path: Path) -> None:
    path = tmp_path / "nightly.json"
    done = nightly("--inputs", "400", "--jobs", "2", "--seed", "some", "--out", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert (report["seed"], report["inputs"], report["found"]) == ("some", 400, [])
    assert set(report["targets"]) == set(TARGETS)
    again = nightly("--replay", "head", str(next(path for path in REGRESSIONS)))
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("head: ")
