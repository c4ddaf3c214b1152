"""Golden files of `fairlead convert`: the output and notes of each manifest of a folder of tests.

A golden file has the notes as comments, and then the manifests. There are two for each manifest: of
its conversion, and of its conversion with `--external`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fairlead.errors import BadInput
from fairlead_cli.manifest_conversion import Migration, migrate
from fairlead_cli.migration.drafts import MigrationOptions
from fairlead_testing.kube.render_cases import golden_text
from fairlead_testing.yaml_documents import load_documents

ACCELERATOR: Final = "nvidia-h100"
"""The accelerator for manifests that name none."""


def convert_file(path: Path, *, external: bool = False) -> Migration:
    """Converts the documents of a file, with an accelerator if they name none."""
    documents = [("f.yaml", document) for document in load_documents(path.read_text(encoding="utf-8"))]
    try:
        return migrate(documents, MigrationOptions(external=external))
    except BadInput:
        return migrate(documents, MigrationOptions(ACCELERATOR, external))


def golden_conversions(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields the golden files of a folder of tests, and what belongs in them."""
    for path in sorted((folder / "manifests").glob("*.yaml")):
        for variant, external in (("", False), (".external", True)):
            migration = convert_file(path, external=external)
            notes = "".join(f"# {note.describe()}\n" for note in migration.notes)
            yield folder / "golden" / f"{path.stem}{variant}.yaml", notes + golden_text(tuple(migration.manifests))
