"""``fairlead support-bundle``: a redacted archive of an installation, for support."""

import asyncio
import io
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from fairlead import __version__
from fairlead.errors import BadInput
from fairlead.kube.client import KubeApi
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli import formatting
from fairlead_cli.cluster.access.connection import connect, resolve_access
from fairlead_cli.cluster.bundle.archive import BundlePart, PackedBundle, pack, write_archive
from fairlead_cli.cluster.bundle.collector import build_scrubber, collect_parts
from fairlead_cli.cluster.bundle.redaction import Scrubber
from fairlead_cli.cluster.checks.runner import run_checks
from fairlead_cli.cluster.checks.text_output import render_lines, to_plain
from fairlead_cli.cluster.checks.verdict import CheckResult
from fairlead_cli.cluster.facts_collector import collect_facts
from fairlead_cli.console import terminal_text
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.exit_codes import OK, UNREACHABLE, report_failure
from fairlead_cli.target import ClusterOptions, InstallationOptions

_SHOWN: Final = 5


_DEFAULTS = InstallationOptions()


def support_bundle(
    *,
    out: Annotated[
        Path | None, Parameter(help="The file, or a folder for it. Default: one named by the time, here.")
    ] = None,
    installation: Annotated[InstallationOptions, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Write a redacted archive of what Fairlead has in a cluster.

    It holds the result of `fairlead check`, versions, models and their objects, pods and events. It
    also holds the end of the control plane's logs, and the pages of gateways and operators. A
    manifest lists the content, and what is missing and why.

    It does not hold values of Secrets and environment variables, API keys, prompts, or logs of
    engines.

    Exits 0 when it was written, 2 on wrong usage, 3 when no API server can be reached.
    """
    clock = SystemClock()
    name = f"fairlead-support-{datetime.fromtimestamp(clock.wall(), UTC):%Y%m%dT%H%M%SZ}"
    path = out or Path(f"{name}.tar.gz")
    if path.is_dir():
        path = path / f"{name}.tar.gz"
    if path.exists():
        raise BadInput(f"{path} already exists", field="--out", hint="name another file, or remove it")
    try:
        packed = asyncio.run(_build(installation.cluster, clock))
    except ClusterUnreachable as error:
        return report_failure("support-bundle", error, UNREACHABLE)
    size = write_archive(packed, path, name, clock.wall())
    print(path)
    _print_summary(packed, size)
    return OK


async def _build(way: ClusterOptions, clock: Clock) -> PackedBundle:
    async with connect(resolve_access(way)) as (api, version):
        return await build_bundle(api, version, clock, way.install_namespace)


async def build_bundle(api: KubeApi, version: str, clock: Clock, namespace: str | None) -> PackedBundle:
    """Returns the content of the archive."""
    facts = await collect_facts(api, version, clock, namespace=namespace, before_install=False)
    scrub, secrets_problem = await build_scrubber(api, facts)
    results = run_checks(facts)
    about: dict[str, Any] = {
        "made_by": f"fairlead {__version__}",
        "at": f"{datetime.fromtimestamp(facts.now, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "cluster": scrub.scrub_text(facts.server),
        "redacted": "values of Secrets, environment variables, foreign labels and annotations, long arguments, and lines that may "
        "hold a prompt; engines' logs are not in here",
        "secrets_known": f"no: {secrets_problem.reason}; only what has the form of a secret was taken out of texts"
        if secrets_problem
        else "yes",
    }
    return pack([*_checks(results, scrub), *await collect_parts(api, facts, scrub)], about)


def _checks(results: tuple[CheckResult, ...], scrub: Scrubber) -> list[BundlePart]:
    text = io.StringIO()
    for line in render_lines(results):
        text.write(f"{line.plain}\n")
    plain = msgspec.json.format(msgspec.json.encode(scrub.scrub_value(to_plain(results, before_install=False))))
    return [BundlePart("check.txt", scrub.scrub_text(text.getvalue()).encode()), BundlePart("check.json", plain)]


def _print_summary(packed: PackedBundle, size: int) -> None:
    """Prints a summary to stderr, so that a script can read the path from stdout."""
    missing = packed.manifest["missing"]
    print(
        f"{formatting.pluralize(len(packed.files) + 1, 'file')}, {formatting.format_count(size)}B; look "
        f"through it before you send it",
        file=sys.stderr,
    )
    for entry in missing[:_SHOWN]:
        print(terminal_text(f"not in it: {entry['path']}: {entry['why']}"), file=sys.stderr)
    if len(missing) > _SHOWN:
        print(f"and {len(missing) - _SHOWN} more, which its manifest.json lists", file=sys.stderr)
