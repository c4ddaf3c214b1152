"""Provenance of images and releases: an in-toto statement with SLSA provenance, version 1.

It names an image by the digest of its manifest, and a file by its own. Every input has a digest:
the commit, the sources, the locks and the base. The same inputs give the same bytes, so there are
no times and no run ids in it. It is not signed; the checksums of a release are.

Source: the in-toto attestation framework, Statement v1; SLSA specification, provenance v1.
"""

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
IMAGE_BUILD = "https://serving.fairlead.io/builds/image-archive/v1"
RELEASE_BUILD = "https://serving.fairlead.io/builds/release/v1"
BUILDER = "https://serving.fairlead.io/builders/release"


@dataclass(frozen=True, slots=True)
class Material:
    """One input of a build. digests: algorithm → value in hexadecimal."""

    name: str
    digests: Mapping[str, str]
    annotations: Mapping[str, object] = field(default_factory=dict)

    def descriptor(self) -> dict[str, object]:
        """Returns the resource descriptor, without empty fields."""
        made: dict[str, object] = {"name": self.name, "digest": dict(self.digests)}
        return made | ({"annotations": dict(self.annotations)} if self.annotations else {})


def file_material(root: Path, path: str) -> Material:
    return Material(path, {"sha256": hashlib.sha256((root / path).read_bytes()).hexdigest()})


def source_material(root: Path, tree: str) -> Material:
    """Returns the sources as a material: their SHA-256, and the commit where there is one.

    tree: SHA-256 of the sources that went into the build, in hexadecimal.
    The annotation ``modified`` says that tracked files differ from the commit.
    """
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return Material("source", {"sha256": tree})
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return Material("source", {"gitCommit": commit, "sha256": tree}, {"modified": changed != ""})


def provenance(
    subjects: Mapping[str, str],
    parameters: Mapping[str, object],
    materials: Sequence[Material],
    build_type: str = IMAGE_BUILD,
) -> str:
    """Returns the statement about these subjects as JSON.

    subjects: name → SHA-256 in hexadecimal; an image by that of its manifest.
    parameters: what the caller of the build chose.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects.items()],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": build_type,
                "externalParameters": dict(parameters),
                "resolvedDependencies": [material.descriptor() for material in materials],
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    }
    return json.dumps(statement, indent=2, sort_keys=True) + "\n"


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command; None where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
