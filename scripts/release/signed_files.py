"""Provenance, checksums and signature of a release's files.

- ``provenance.intoto.json``: a statement that names every file by its SHA-256.
- ``SHA256SUMS``: all files, that one included, and ``SHA256SUMS.sig``: its signature.
- ``signing-key.pub``: the public key, Ed25519.

The key is a local file: ``SIGNING_KEY``, or one that is made once. Ed25519 signatures have no
randomness: the same files and the same key give the same bytes.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from scripts.release.artefacts import LAYOUT
from scripts.release.images.components import sources_digest
from scripts.release.provenance import RELEASE_BUILD, file_material, provenance, source_material
from scripts.release.release_run import ReleaseError, ReleaseRun, sha256_of

SUMS, SIGNATURE, STATEMENT, PUBLIC_KEY = (
    "SHA256SUMS",
    "SHA256SUMS.sig",
    "provenance.intoto.json",
    "signing-key.pub",
)
KEY_VARIABLE = "SIGNING_KEY"
_MATERIALS = ("pyproject.toml", "requirements/dev.txt")


def sign_release(run: ReleaseRun) -> Iterator[Path]:
    """Writes the provenance, the checksums and their signature for all files of the folder."""
    key = signing_key(run)
    public, statement, sums, signature = (run.folder / name for name in (PUBLIC_KEY, STATEMENT, SUMS, SIGNATURE))
    _openssl("pkey", "-in", str(key), "-pubout", "-out", str(public))
    materials = [
        source_material(run.root, sources_digest().hex()),
        *(file_material(run.root, path) for path in _MATERIALS),
    ]
    parameters = {"version": run.version, "architectures": list(run.architectures)}
    named = checksums(run.folder, (SUMS, SIGNATURE, STATEMENT))
    statement.write_text(provenance(named, parameters, materials, RELEASE_BUILD))
    listed = checksums(run.folder, (SUMS, SIGNATURE))
    sums.write_text("".join(f"{digest}  {name}\n" for name, digest in listed.items()))
    _openssl("pkeyutl", "-sign", "-inkey", str(key), "-rawin", "-in", str(sums), "-out", str(signature))
    yield from (statement, public, sums, signature)


def checksums(folder: Path, left_out: tuple[str, ...]) -> dict[str, str]:
    """Returns the files of a release with their SHA-256, by name.

    Blobs of the OCI layout are left out: their names are their checksums.
    """
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kept = [name for name in paths if name not in left_out and not name.startswith(f"{LAYOUT}/blobs/")]
    return {name: sha256_of(folder / name) for name in kept}


def signing_key(run: ReleaseRun) -> Path:
    """Returns the private key: that of ``SIGNING_KEY``, else one of this checkout's own."""
    if named := os.environ.get(KEY_VARIABLE):
        if not Path(named).is_file():
            raise ReleaseError(f"{KEY_VARIABLE} names {named}, which is no file")
        return Path(named)
    key = run.root / "out" / "release" / "signing-key.pem"
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        key.touch(0o600)
        _openssl("genpkey", "-algorithm", "ed25519", "-out", str(key))
    return key


def _openssl(*arguments: str) -> None:
    try:
        done = subprocess.run(["openssl", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise ReleaseError("signing needs the command openssl, version 3 or later") from None
    if done.returncode:
        raise ReleaseError(f"openssl {arguments[0]} failed: {done.stderr.decode().strip()}")
