"""``fairlead check``: is a cluster fit for Fairlead, and is the installation healthy?"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter

from fairlead.runtime.clock import Clock, SystemClock
from fairlead.units import parse_duration
from fairlead_cli.cluster.access.connection import connect, resolve_access
from fairlead_cli.cluster.checks.runner import has_failures, run_checks
from fairlead_cli.cluster.checks.text_output import render_lines, summarize, to_plain
from fairlead_cli.cluster.checks.verdict import CheckResult
from fairlead_cli.cluster.facts_collector import DEFAULT_NAMESPACE, collect_facts
from fairlead_cli.console import stdout_console
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, report_failure
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ClusterOptions, InstallationOptions

RETRY_SECONDS: Final = 2.0
Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Options of ``fairlead check``."""

    cluster: ClusterOptions
    pre: bool = False


_DEFAULTS = InstallationOptions()


def check(
    *,
    pre: Annotated[
        bool, Parameter(negative=(), help="Look at the cluster before Fairlead is installed there.")
    ] = False,
    wait: Annotated[
        str | None, Parameter(help="Look again until nothing fails, for at most this long, such as 60s.")
    ] = None,
    installation: Annotated[InstallationOptions, Parameter(name="*")] = _DEFAULTS,
    output: OutputFlag = "table",
) -> int:
    """Check a cluster, and say how to fix each failure.

    A line begins with √ (passed), ‼ (a warning), × (failed) or ? (unknown, with the reason).
    Nothing is changed; with --pre, one pod is sent as a dry run, to the namespace fairlead unless
    --install-namespace names another.

    Exits 0 when nothing failed, 1 when something did, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    limit = None if wait is None else parse_duration(wait, field="--wait")
    clock = SystemClock()
    try:
        results = asyncio.run(_check_until_passed(CheckOptions(installation.cluster, pre), limit, clock, asyncio.sleep))
    except ClusterUnreachable as error:
        return report_failure("check", error, UNREACHABLE)
    if is_document(output):
        print(format_document(to_plain(results, before_install=pre), output))
    else:
        print_results(results)
    return PROBLEM if has_failures(results) else OK


async def _check_until_passed(
    options: CheckOptions, limit: float | None, clock: Clock, sleep: Sleep
) -> tuple[CheckResult, ...]:
    """Runs the checks once, or until nothing fails or the limit is over; returns the last results.

    limit: seconds; None to run the checks once.

    Raises ClusterUnreachable if the cluster does not answer the last time.
    """
    start = clock.now()
    while True:
        try:
            results = await check_once(options, clock)
        except ClusterUnreachable:
            if limit is None or clock.now() - start >= limit:
                raise
            results = ()
        if limit is None or (results and not has_failures(results)) or clock.now() - start >= limit:
            return results
        if results and sys.stderr.isatty():
            print(f"fairlead check: {summarize(results)}; checking again", file=sys.stderr)
        await sleep(min(RETRY_SECONDS, limit - (clock.now() - start)))


async def check_once(options: CheckOptions, clock: Clock) -> tuple[CheckResult, ...]:
    """Runs the checks once. Raises ClusterUnreachable."""
    namespace = options.cluster.install_namespace or (DEFAULT_NAMESPACE if options.pre else None)
    async with connect(resolve_access(options.cluster)) as (api, version):
        return run_checks(
            await collect_facts(api, version, clock, namespace=namespace, before_install=options.pre),
            before_install=options.pre,
        )


def print_results(results: tuple[CheckResult, ...]) -> None:
    """Prints the results as text."""
    console = stdout_console()
    for line in render_lines(results):
        console.print(line, soft_wrap=True)
