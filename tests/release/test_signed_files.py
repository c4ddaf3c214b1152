"""Checksums, provenance and signature of a release, and what an altered file does to them."""

import json
import subprocess
from pathlib import Path

import pytest

from scripts.release.release_run import ROOT, ReleaseError, ReleaseRun
from scripts.release.signed_files import (
    KEY_VARIABLE,
    PUBLIC_KEY,
    SIGNATURE,
    STATEMENT,
    SUMS,
    sign_release,
    signing_key,
)

VERIFY = (
    *("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", PUBLIC_KEY, "-rawin"),
    *("-in", SUMS, "-sigfile", SIGNATURE),
)
"""The command of docs/contributing/supply-chain.md."""


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


def accepts(run: ReleaseRun, *command: str) -> bool:
    return subprocess.run(command, cwd=run.folder, capture_output=True).returncode == 0


def test_openssl_and_sha256sum_accept_every_file(release: ReleaseRun) -> None:
    assert accepts(release, *VERIFY)
    assert accepts(release, "sha256sum", "--check", SUMS)
    names = [line.split("  ")[1] for line in (release.folder / SUMS).read_text().splitlines()]
    assert names == ["a.whl", "oci/index.json", STATEMENT, "sbom/a.json", PUBLIC_KEY]


def test_the_statement_names_every_file_and_the_commit(release: ReleaseRun) -> None:
    statement = json.loads((release.folder / STATEMENT).read_text())
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


@pytest.mark.parametrize("name", ["a.whl", SUMS, SIGNATURE, STATEMENT])
def test_a_changed_file_is_refused(release: ReleaseRun, name: str) -> None:
    path = release.folder / name
    path.write_bytes(path.read_bytes() + b" ")
    assert not (accepts(release, *VERIFY) and accepts(release, "sha256sum", "--check", "--strict", SUMS))


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
