"""Checksums, signed provenance and signature of a release's files.

- ``provenance.intoto.jsonl``: an in-toto statement with SLSA provenance 1 that names every file by
  its SHA-256, in a DSSE envelope.
- ``SHA256SUMS``: all files, that one included, and ``SHA256SUMS.sig``: its signature.
- ``signing-key.pub``: the public key, Ed25519.

The key is a local file: ``SIGNING_KEY``, or one that is made once. Ed25519 signatures have no
randomness: the same files and the same key give the same bytes.

Source: DSSE protocol 1.0; in-toto Statement v1; SLSA provenance v1.
"""

import base64
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.release.artefacts import LAYOUT
from scripts.release.images.components import sources_digest
from scripts.release.provenance import PREDICATE_TYPE, STATEMENT_TYPE, file_material, source_material
from scripts.release.release_run import ReleaseError, ReleaseRun, sha256_of

BUILD_TYPE = "https://serving.fairlead.io/builds/release/v1"
BUILDER = "https://serving.fairlead.io/builders/release"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
SUMS, SIGNATURE, STATEMENT, PUBLIC_KEY = (
    "SHA256SUMS",
    "SHA256SUMS.sig",
    "provenance.intoto.jsonl",
    "signing-key.pub",
)
KEY_VARIABLE = "SIGNING_KEY"
_MATERIALS = ("pyproject.toml", "requirements/dev.txt")


def sign_release(run: ReleaseRun) -> Iterator[Path]:
    """Writes the provenance, the checksums and their signature for all files of the folder."""
    key = signing_key(run)
    public = run.folder / PUBLIC_KEY
    public.write_bytes(_openssl("pkey", "-in", str(key), "-pubout"))
    statement = run.folder / STATEMENT
    statement.write_text(json.dumps(envelope(release_statement(run), key), sort_keys=True) + "\n")
    sums = run.folder / SUMS
    sums.write_text(checksums(run.folder, (SUMS, SIGNATURE)))
    signature = run.folder / SIGNATURE
    signature.write_bytes(sign(sums.read_bytes(), key))
    yield from (statement, public, sums, signature)


def checksums(folder: Path, left_out: tuple[str, ...]) -> str:
    """Returns the files of a release with their SHA-256, as ``sha256sum --check`` reads them.

    Blobs of the OCI layout are left out: their names are their checksums.
    """
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kept = [name for name in paths if name not in left_out and not name.startswith(f"{LAYOUT}/blobs/")]
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in kept)


def release_statement(run: ReleaseRun) -> bytes:
    """Returns the in-toto statement about the files of a release."""
    listed = checksums(run.folder, (SUMS, SIGNATURE, STATEMENT)).splitlines()
    subjects = [{"name": name, "digest": {"sha256": digest}} for digest, name in (line.split("  ") for line in listed)]
    materials = [
        source_material(run.root, sources_digest().hex()),
        *(file_material(run.root, path) for path in _MATERIALS),
    ]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"version": run.version, "architectures": list(run.architectures)},
                "resolvedDependencies": [material.descriptor() for material in materials],
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    }
    return json.dumps(statement, sort_keys=True).encode()


def envelope(payload: bytes, key: Path) -> dict[str, object]:
    """Returns a payload in a signed DSSE envelope."""
    public = _openssl("pkey", "-in", str(key), "-pubout", "-outform", "DER")
    signed = {
        "keyid": f"sha256:{hashlib.sha256(public).hexdigest()}",
        "sig": base64.b64encode(sign(pre_authentication(payload), key)).decode(),
    }
    return {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(), "signatures": [signed]}


def pre_authentication(payload: bytes) -> bytes:
    """Returns the bytes that DSSE signs: type and payload, each with its length."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def verify_release(folder: Path, public: Path) -> list[str]:
    """Returns what is wrong with the files of a release; empty if they are those that were signed.

    public: the key of the publisher, from another source than the release itself.
    """
    sums = (folder / SUMS).read_bytes()
    if not is_signed(sums, (folder / SIGNATURE).read_bytes(), public):
        return [f"{SIGNATURE} is not a signature of {SUMS} with this key"]
    document = json.loads((folder / STATEMENT).read_text())
    payload = base64.b64decode(document["payload"])
    signature = base64.b64decode(document["signatures"][0]["sig"])
    problems = [] if is_signed(pre_authentication(payload), signature, public) else [f"{STATEMENT} is not signed"]
    listed = {name: digest for digest, name in (line.split("  ") for line in sums.decode().splitlines())}
    named = {subject["name"]: subject["digest"]["sha256"] for subject in json.loads(payload)["subject"]}
    if named != {name: digest for name, digest in listed.items() if name != STATEMENT}:
        problems.append(f"{STATEMENT} names other files than {SUMS}")
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(path) != digest:
            problems.append(f"{name} was changed")
    return problems


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
        key.write_bytes(_openssl("genpkey", "-algorithm", "ed25519"))
    return key


def sign(content: bytes, key: Path) -> bytes:
    """Returns the Ed25519 signature of content."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return _openssl("pkeyutl", "-sign", "-inkey", str(key), "-rawin", "-in", file.name)


def is_signed(content: bytes, signature: bytes, public: Path) -> bool:
    """Whether a signature is one of content with the key that belongs to ``public``."""
    with tempfile.NamedTemporaryFile() as file, tempfile.NamedTemporaryFile() as signed:
        for target, data in ((file, content), (signed, signature)):
            target.write(data)
            target.flush()
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin", "-in", file.name]
        done = subprocess.run([*command, "-sigfile", signed.name], capture_output=True, check=False)
    return done.returncode == 0


def _openssl(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["openssl", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise ReleaseError("signing needs the command openssl, version 3 or later") from None
    if done.returncode:
        raise ReleaseError(f"openssl {arguments[0]} failed: {done.stderr.decode().strip()}")
    return done.stdout
