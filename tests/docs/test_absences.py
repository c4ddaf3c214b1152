"""Sentences that say what is missing name the code, test or record that would change with it.

The comment ``<!--=KIND: VALUE-->`` behind the word is like that behind a figure
(`scripts/generators/figures.py`): readers do not see it. The kinds are those of `failures`.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "SCOPE.md", "ROADMAP.md", "docs/status.md", "docs/comparison.md")
MARKER = re.compile(r"(?<=\S)<!--=(absent|no file|test|record|none): ((?s:.+?))-->")
FIGURE = re.compile(r"(?<=\S)<!--=[\w-]+-->")
ABSENCE = re.compile(
    r"\b(?:no|not|none|nothing|nobody|never|neither|nor|cannot|without|lacks?|missing|unsupported)\b|n't\b",
    re.IGNORECASE,
)
UNREAD = re.compile(r"^```.*?^```$|<!--(?!=).*?-->|\]\([^)]*\)", re.MULTILINE | re.DOTALL)
"""Code, other comments, and the targets of links."""


def failures(kind: str, value: str, root: Path = ROOT) -> list[str]:
    """Returns what no longer holds of a marker; empty if it holds.

    - ``absent: REGEX in GLOB GLOB``: no text of these files has it.
    - ``no file: GLOB``: the folder exists, and has no such file.
    - ``test: NAME``: a test has this name.
    - ``record: FILE KEY/KEY = JSON``: the record of `bench/results` has this value there.
    - ``none: REASON``: nothing in the repository can change it.
    """
    value = " ".join(value.split())
    if kind == "absent":
        regex, _, globs = value.rpartition(" in ")
        files = {glob: [path for path in root.glob(glob) if path.is_file()] for glob in globs.split()}
        return [f"no file is {glob}" for glob, found in files.items() if not found] + [
            f"{path.relative_to(root)} has {regex}"
            for path in sorted({path for found in files.values() for path in found})
            if re.search(regex, path.read_text(encoding="utf-8", errors="replace"))
        ]
    if kind == "no file":
        folder = [] if (root / value).parent.is_dir() else [f"{value}: no such folder"]
        return folder + [f"{path.relative_to(root)} exists" for path in sorted(root.glob(value))]
    if kind == "test":
        return [] if value in known_tests(root) else [f"no test is {value}"]
    if kind == "record":
        place, _, wanted = value.partition(" = ")
        name, _, keys = place.partition(" ")
        found = json.loads((root / "bench" / "results" / name).read_text(encoding="utf-8"))
        for key in keys.split("/"):
            found = found.get(key) if isinstance(found, dict) else None
        return [] if found == json.loads(wanted) else [f"{place} is {json.dumps(found)}"]
    return []


@cache
def known_tests(root: Path) -> frozenset[str]:
    files = [path for top in ("tests", "e2e") for path in (root / top).rglob("test_*.py")]
    return frozenset(name for path in files for name in re.findall(r"(?m)^(?:async )?def (test_\w+)", path.read_text()))


def unmarked(page: str) -> list[str]:
    """Returns the sentences and table rows of a page that say what is missing, without a marker.

    A figure is a marker: it follows its record. In a table with a column of Fairlead, the cells of
    other products are not read. Below a heading that says it, each row and item in bold needs one.
    """
    found, below, own = [], False, False
    for block in re.split(r"\n(?=[-|#]|\d+\. |\n)", FIGURE.sub("\0", MARKER.sub("\0", UNREAD.sub("]", page)))):
        text = block.strip()
        if text.startswith("#"):
            below = ABSENCE.search(text) is not None or "limits" in text
            continue
        if text.startswith("|"):
            own = "| Fairlead |" in text or own
            text = "|".join(text.split("|")[:3]).strip() if own else text
        else:
            own = False
        parts = [text] if text.startswith("|") else re.split(r"(?<=[.!?\0])\s+", text)
        found += [part for part in parts if ABSENCE.search(part) and "\0" not in part]
        if below and re.match(r"[-|] ?\*\*", text) and "\0" not in text and text not in found:
            found.append(text)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_is_missing_is_marked_and_still_missing(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert unmarked(text) == []
    wrong = {f"{kind}: {value}": failures(kind, value) for kind, value in MARKER.findall(text)}
    assert {marker: why for marker, why in wrong.items() if why} == {}


@pytest.mark.parametrize(
    ("marker", "why"),
    [
        ("absent: http in src/*.py", []),
        ("absent: grpc|h3 in src/*.py", ["src/a.py has grpc|h3"]),
        ("absent: x in lib/*.py src/*.py", ["no file is lib/*.py"]),
        ("no file: src/*.pyx", []),
        ("no file: bench/results/soak*.json", ["bench/results/soak.json exists"]),
        ("no file: records/*.json", ["records/*.json: no such folder"]),
        ("test: test_here", []),
        ("test: test_gone", ["no test is test_gone"]),
        ('record: soak.json parts/gpu = "H200"', []),
        ('record: soak.json parts/gpu = "H100"', ['soak.json parts/gpu is "H200"']),
        ("record: soak.json parts/gone/more = 1", ["soak.json parts/gone/more is null"]),
    ],
)
def test_marker_fails_once_what_it_names_has_changed(tmp_path: Path, marker: str, why: list[str]) -> None:
    for folder in ("src", "tests", "bench/results"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src/a.py").write_text("import grpc")
    (tmp_path / "tests/test_a.py").write_text("def test_here(): ...")
    (tmp_path / "bench/results/soak.json").write_text('{"parts": {"gpu": "H200"}}')
    kind, _, value = marker.partition(": ")
    assert failures(kind, value, tmp_path) == why


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("It has no GPU<!--=test: test_a-->. It cannot\nfly.", ["It cannot\nfly."]),
        ("- A [page](no.md).\n- There is no page.", ["- There is no page."]),
        ("| | Fairlead | B |\n|---|---|---|\n| a | yes | no |\n| b | no | yes |", ["| b | no"]),
        ("## Known limits\n\n- **Windows** is new.\n", ["- **Windows** is new."]),
        ("A\n<!--=test: at_a_line's_start--> is not one.", ["A\n<!--=test: at_a_line's_start--> is not one."]),
    ],
)
def test_sentence_without_its_marker_is_found(page: str, found: list[str]) -> None:
    assert unmarked(page) == found
