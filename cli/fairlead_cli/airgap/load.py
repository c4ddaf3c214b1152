"""``fairlead airgap load``: pushes the content of an archive into a registry."""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from fairlead.errors import BadInput
from fairlead_cli.airgap.archive import CHART, CHECKSUMS, extract_archive, read_chart
from fairlead_cli.oci.documents import Descriptor
from fairlead_cli.oci.reference import parse_prefix
from fairlead_cli.oci.registry import RegistryClient
from fairlead_cli.oci.transfer import push_entries

_ENGINES = {"vllm-openai": "vllm", "sglang": "sglang"}
"""Last part of an engine image's name → its key in the chart's values."""


def load_archive(
    archive: Path, registry: str, *, plain_http: bool, report: Callable[[str], None], key: Path | None = None
) -> None:
    """Checks an archive, pushes its artefacts, and reports how to install from there.

    registry: host and path, below which artefacts get their names.
    report: takes lines for people.
    key: public key; the checksums must be signed with its private part. None checks no signature.
    """
    prefix = registry.removeprefix("oci://").rstrip("/")
    parse_prefix(prefix)
    with tempfile.TemporaryDirectory(dir=archive.resolve().parent) as work, RegistryClient(plain_http) as client:
        layout = extract_archive(archive, Path(work))
        if key is None:
            report("The archive is undamaged. Who made it was not checked: that needs --key and a signature.")
        else:
            verify_signature(layout.folder / CHECKSUMS, archive.with_name(f"{archive.name}.sig"), key)
        chart = read_chart(layout)
        entries = push_entries(client, layout, prefix)
    for name, described in entries.items():
        report(f"pushed {prefix}/{name}@{described['digest']}")
    report("")
    report("Install it from there:")
    report("")
    report(install_command(prefix, chart.descriptor, list(entries), plain_http=plain_http))


def verify_signature(checksums: Path, signature: Path, key: Path) -> None:
    """Raises BadInput unless a key's owner signed the checksums of an archive.

    Why a file of its own: the checksums name every file, so one signature covers all.
    """
    for flag, path in (("--key", key), ("--archive", signature)):
        if not path.is_file():
            raise BadInput(f"{path} is missing", field=flag, hint='See "Sign it" in the guide to installing offline.')
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(key), "-in", str(checksums)]
    try:
        done = subprocess.run([*command, "-sigfile", str(signature)], capture_output=True, check=False)
    except FileNotFoundError:
        raise BadInput("the command openssl is missing", field="--key", hint="Install openssl 3.") from None
    if done.returncode:
        hint = "Get archive, signature and key again. Load nothing from this archive."
        raise BadInput(f"{signature} is no signature of the archive with {key}", field="--key", hint=hint)


def install_command(prefix: str, chart: Descriptor, entries: list[str], *, plain_http: bool) -> str:
    """Returns the helm command that installs a chart from a registry with this prefix.

    entries: names of the artefacts there.
    """
    words = [
        f"helm install fairlead oci://{prefix}/{CHART}@{chart['digest']}",
        "--namespace fairlead --create-namespace",
        f"--set global.imageRegistry={prefix}",
    ]
    for name in entries:
        engine = _ENGINES.get(name.rpartition(":")[0].rpartition("/")[2])
        words += [f"--set engines.images.{engine}={prefix}/{name}"] if engine else []
    words += ["--plain-http"] if plain_http else []
    return " \\\n  ".join(words)
