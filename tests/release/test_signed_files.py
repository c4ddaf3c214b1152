"""Checksums, provenance and signature of a release, and what an altered file does to them."""

import base64
import json
import subprocess
from pathlib import Path

import pytest

from scripts.release.release_run import ROOT, ReleaseError, ReleaseRun
from scripts.release.signed_files import (
    KEY_VARIABLE,
    PAYLOAD_TYPE,
    PUBLIC_KEY,
    SIGNATURE,
    STATEMENT,
    SUMS,
    sign_release,
    signing_key,
    verify_release,
)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReleaseRun:
    """A signed folder with two files, a blob and a key of this test's own."""
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True, capture_output=True)
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    folder = tmp_path / "dist"
    for name in ("a.whl", "sbom/a.json", "oci/index.json", "oci/blobs/sha256/00"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    run = ReleaseRun(ROOT, folder)
    list(sign_release(run))
    return run


def problems(run: ReleaseRun) -> list[str]:
    return verify_release(run.folder, run.folder / PUBLIC_KEY)


def test_sha256sum_accepts_every_file(release: ReleaseRun) -> None:
    done = subprocess.run(["sha256sum", "--check", SUMS], cwd=release.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.split("  ")[1] for line in (release.folder / SUMS).read_text().splitlines()]
    assert names == ["a.whl", "oci/index.json", STATEMENT, "sbom/a.json", PUBLIC_KEY]


def test_the_statement_names_every_file_and_the_commit(release: ReleaseRun) -> None:
    envelope = json.loads((release.folder / STATEMENT).read_text())
    assert envelope["payloadType"] == PAYLOAD_TYPE
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert [subject["name"] for subject in statement["subject"]] == [
        "a.whl",
        "oci/index.json",
        "sbom/a.json",
        PUBLIC_KEY,
    ]
    source, *locks = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["name"] == "source"
    assert "requirements/dev.txt" in [lock["name"] for lock in locks]


def test_the_same_files_and_key_give_the_same_bytes(release: ReleaseRun) -> None:
    before = {name: (release.folder / name).read_bytes() for name in (SUMS, SIGNATURE, STATEMENT)}
    list(sign_release(release))
    assert {name: (release.folder / name).read_bytes() for name in before} == before
    assert problems(release) == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.whl", "a.whl was changed"),
        (SUMS, f"{SIGNATURE} is not a signature of {SUMS} with this key"),
        (SIGNATURE, f"{SIGNATURE} is not a signature of {SUMS} with this key"),
        (STATEMENT, f"{STATEMENT} was changed"),
    ],
)
def test_a_changed_file_is_named(release: ReleaseRun, name: str, problem: str) -> None:
    path = release.folder / name
    path.write_bytes(path.read_bytes() + b" ")
    assert problem in problems(release)


def test_another_key_is_refused(release: ReleaseRun, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(other)], check=True, capture_output=True)
    public = tmp_path / "other.pub"
    subprocess.run(["openssl", "pkey", "-in", str(other), "-pubout", "-out", str(public)], check=True)
    assert verify_release(release.folder, public) == [f"{SIGNATURE} is not a signature of {SUMS} with this key"]


def test_a_missing_file_is_named(release: ReleaseRun) -> None:
    (release.folder / "sbom" / "a.json").unlink()
    assert problems(release) == ["sbom/a.json is missing"]


def test_a_key_of_this_checkout_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    run = ReleaseRun(tmp_path, tmp_path / "dist")
    key = signing_key(run)
    content = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert signing_key(run).read_bytes() == content
    assert not key.is_relative_to(run.folder)


def test_a_key_that_is_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "none.pem"))
    with pytest.raises(ReleaseError, match="which is no file"):
        signing_key(ReleaseRun(ROOT, tmp_path))
