"""``fairlead check``: is a cluster fit for Fairlead, and is the installation healthy?"""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.text import Text

from fairlead.runtime.clock import Clock, SystemClock
from fairlead.units import parse_duration
from fairlead_cli import formatting
from fairlead_cli.cluster.access.connection import connect, resolve_access
from fairlead_cli.cluster.checks.check import CheckOutcome, CheckResult, truncate_lines
from fairlead_cli.cluster.checks.runner import has_failures, run_checks
from fairlead_cli.cluster.facts_collector import DEFAULT_NAMESPACE, collect_facts
from fairlead_cli.cluster.object_fields import NOT_ALLOWED_PREFIX
from fairlead_cli.console import stdout_console
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, ClusterUnreachable, report_failure
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ClusterOptions, InstallationOptions

RETRY_SECONDS: Final = 2.0
Sleep = Callable[[float], Awaitable[object]]


_DEFAULTS = InstallationOptions()

OUTCOME_SIGNS: Final = {
    CheckOutcome.OK: "√",
    CheckOutcome.WARNING: "‼",
    CheckOutcome.FAILED: "×",
    CheckOutcome.UNKNOWN: "?",
}
OUTCOME_STYLES: Final = {
    CheckOutcome.OK: "green",
    CheckOutcome.WARNING: "yellow",
    CheckOutcome.FAILED: "red",
    CheckOutcome.UNKNOWN: "magenta",
}
_INDENT: Final = "    "
_LINK: Final = re.compile(r"\[([^]]*)\]\([^)]*\)")


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
        results = asyncio.run(
            _check_until_passed(partial(check_once, installation.cluster, pre, clock), limit, clock, asyncio.sleep)
        )
    except ClusterUnreachable as error:
        return report_failure(error, UNREACHABLE)
    if is_document(output):
        print(format_document(to_plain(results, before_install=pre), output))
    else:
        print_results(results)
    return PROBLEM if has_failures(results) else OK


async def _check_until_passed(
    check_once: Callable[[], Awaitable[tuple[CheckResult, ...]]], limit: float | None, clock: Clock, sleep: Sleep
) -> tuple[CheckResult, ...]:
    """Runs the checks once, or until nothing fails or the limit is over; returns the last results.

    limit: seconds; None to run the checks once.

    Raises ClusterUnreachable if the cluster does not answer the last time.
    """
    start = clock.now()
    while True:
        try:
            results = await check_once()
        except ClusterUnreachable:
            if limit is None or clock.now() - start >= limit:
                raise
            results = ()
        if limit is None or (results and not has_failures(results)) or clock.now() - start >= limit:
            return results
        if results and sys.stderr.isatty():
            print(f"fairlead: {summarize(results)}; checking again", file=sys.stderr)
        await sleep(min(RETRY_SECONDS, limit - (clock.now() - start)))


async def check_once(cluster: ClusterOptions, pre: bool, clock: Clock) -> tuple[CheckResult, ...]:
    """Runs the checks once. Raises ClusterUnreachable."""
    namespace = cluster.install_namespace or (DEFAULT_NAMESPACE if pre else None)
    async with connect(resolve_access(cluster)) as (api, version):
        return run_checks(
            await collect_facts(api, version, clock, namespace=namespace, before_install=pre),
            before_install=pre,
        )


def print_results(results: tuple[CheckResult, ...]) -> None:
    """Prints the results as text."""
    console = stdout_console()
    for line in render_lines(results):
        console.print(line, soft_wrap=True)


def render_lines(results: Sequence[CheckResult]) -> Iterator[Text]:
    """Yields a heading for each section, a line for each check, and below a failure its findings
    and the fix.
    """
    for section, section_results in groupby(results, lambda result: result.check.section):
        yield Text(section, style="bold")
        for result in section_results:
            yield from _result(result)
        yield Text()
    yield Text(summarize(results))


def _result(result: CheckResult) -> Iterator[Text]:
    outcome = result.verdict.outcome
    note = f" ({result.verdict.note})" if result.verdict.note else ""
    yield Text.assemble((f"{OUTCOME_SIGNS[outcome]} ", OUTCOME_STYLES[outcome]), result.check.title, (note, "dim"))
    if outcome is CheckOutcome.OK:
        return
    for line in truncate_lines(result.verdict.lines):
        yield Text(f"{_INDENT}{line}")
    if outcome is not CheckOutcome.UNKNOWN:
        yield Text(f"{_INDENT}fix: {_plain(result.check.remedy)}", style="dim")
    elif all(line.startswith(NOT_ALLOWED_PREFIX) for line in result.verdict.lines):
        return  # the check of rights has said where to read on
    yield Text(f"{_INDENT}documentation: {result.check.anchor}", style="dim")


def _plain(text: str) -> str:
    return _LINK.sub(r"\1", text.partition(". ")[0].rstrip(".")).replace("`", "")


def summarize(results: Sequence[CheckResult]) -> str:
    """Returns ``27 checks: 25 passed, 1 warning, 1 failed``."""
    counts = count_outcomes(results)
    parts = [f"{counts['ok']} passed"]
    parts += [f"{counts['warning']} warning{'' if counts['warning'] == 1 else 's'}"] if counts["warning"] else []
    parts += [f"{counts['unknown']} unknown"] if counts["unknown"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    return f"{formatting.pluralize(len(results), 'check')}: {', '.join(parts)}"


def count_outcomes(results: Sequence[CheckResult]) -> dict[str, int]:
    return {str(outcome): sum(result.verdict.outcome is outcome for result in results) for outcome in CheckOutcome}


def to_plain(results: Sequence[CheckResult], *, before_install: bool) -> dict[str, Any]:
    """Returns the complete results for a document."""
    return {
        "ok": not any(result.verdict.outcome is CheckOutcome.FAILED for result in results),
        "pre": before_install,
        "counts": count_outcomes(results),
        "checks": [
            {
                "id": result.check.id,
                "section": str(result.check.section),
                "says": result.check.title,
                "outcome": str(result.verdict.outcome),
                "note": result.verdict.note,
                "lines": list(result.verdict.lines),
                "hint": result.check.remedy,
                "docs": result.check.anchor,
            }
            for result in results
        ],
    }
