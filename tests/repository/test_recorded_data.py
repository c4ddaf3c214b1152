"""Recorded data is in the repository: a clone needs nothing else."""

import json
import re
import subprocess
from pathlib import Path

from repository_rules import ROOT

BESIDE = re.compile(
    r"\.\./shared\b|[\"']shared[\"'] ?/|\bshared/(?:traces|research|reviews|recipes)\b|\.parent ?/ ?[\"']shared"
)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_beside_the_checkout() -> None:
    mentions = []
    for path in tracked():
        if path != Path(__file__) and path.suffix not in (".gz", ".png", ".msgpack", ".recording"):
            text = path.read_text(encoding="utf-8", errors="replace")
            mentions += [f"{path.relative_to(ROOT)}: {match[0]}" for match in BESIDE.finditer(text)]
    assert mentions == []


def test_every_recording_is_on_the_page_of_its_folder() -> None:
    folder = ROOT / "tests" / "recordings" / "vllm"
    page = (folder / "README.md").read_text()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(
        re.findall(r"^\| `([\w-]+)` \|", page, re.M)
    )
    events = (folder / "kv-events" / "README.md").read_text()
    assert {path.name for path in (folder / "kv-events").iterdir()} - {"README.md"} == set(
        re.findall(r"^\| `([\w.-]+)` \|", events, re.M)
    )


def test_every_recorded_client_is_on_the_page_of_its_folder_with_its_version() -> None:
    folder = ROOT / "tests" / "recordings" / "clients"
    rows = re.findall(r"^\| (`[^|]+\.json`) \| ([^|]+)\|", (folder / "README.md").read_text(), re.M)
    clients = {name: row for names, row in rows for name in re.findall(r"[\w-]+\.json", names)}
    assert set(clients) == {path.name for path in folder.glob("*.json")}
    for name, row in clients.items():
        (version,) = re.findall(r"\d+\.[\d.]*\d", json.loads((folder / name).read_text())["version"])
        assert version in row
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
