"""Provenance: in-toto statements that name every input by a digest, the same bytes each time."""

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from scripts.release.images.components import PREFIX, ROOT, write_descriptions
from scripts.release.images.layers import OciImage, manifest_digest, write_archive, write_layer
from scripts.release.provenance import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Material,
    file_material,
    provenance,
    source_material,
)

TREE = "c" * 64


def image(folder: Path) -> OciImage:
    (folder / "root").mkdir(parents=True)
    (folder / "root" / "file").write_text("text")
    layer = write_layer(folder / "root", folder / "fairlead-0.tar.gz")
    return OciImage(f"{PREFIX}/operator:0.2.0", [layer], {"Entrypoint": ["/file"]}, "arm64")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("text")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_statement_has_the_fields_of_in_toto_and_slsa() -> None:
    statement = json.loads(provenance({"a/b:1": TREE}, {"component": "b"}, [Material("lock", {"sha256": TREE})]))
    assert statement["_type"] == STATEMENT_TYPE
    assert statement["predicateType"] == PREDICATE_TYPE
    assert statement["subject"] == [{"name": "a/b:1", "digest": {"sha256": TREE}}]
    build = statement["predicate"]["buildDefinition"]
    assert build["buildType"].startswith("https://")
    assert build["externalParameters"] == {"component": "b"}
    assert build["resolvedDependencies"] == [{"name": "lock", "digest": {"sha256": TREE}}]
    assert statement["predicate"]["runDetails"]["builder"]["id"].startswith("https://")


def test_source_is_named_by_commit_and_tells_whether_files_differ(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    clean = source_material(repository, TREE)
    assert clean.digests == {"gitCommit": commit, "sha256": TREE}
    assert clean.annotations == {"modified": False}
    (repository / "file").write_text("changed")
    assert source_material(repository, TREE).annotations == {"modified": True}


def test_source_without_a_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert source_material(tmp_path, TREE) == Material("source", {"sha256": TREE})


def test_subject_is_the_manifest_in_the_archive(tmp_path: Path) -> None:
    built = image(tmp_path)
    write_archive(tmp_path / "image.tar", [built])
    with tarfile.open(tmp_path / "image.tar") as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        (entry,) = json.loads(index.read())["manifests"]
    assert entry["digest"] == f"sha256:{manifest_digest(built)}"


def test_an_image_is_described_twice_with_the_same_bytes(tmp_path: Path) -> None:
    built = image(tmp_path)
    described = [path.read_bytes() for _ in range(2) for path in write_descriptions(built, tmp_path, "operator-0.2.0")]
    assert described[:2] == described[2:]
    statement = json.loads(described[1])
    inputs = {
        entry["name"]: entry["digest"] for entry in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    locks = {"requirements/images/operator.txt", "requirements/dev.txt", "requirements/debian/arm64.lock"}
    assert inputs.keys() == {"source", *locks}
    for path in locks:
        assert inputs[path] == {"sha256": hashlib.sha256((ROOT / path).read_bytes()).hexdigest()}
    assert statement["subject"][0]["digest"] == {"sha256": manifest_digest(built)}


def test_file_material_is_the_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("text")
    assert file_material(tmp_path, "lock.txt").digests == {"sha256": hashlib.sha256(b"text").hexdigest()}
