"""``fairlead local status``: the stack on this machine, and a line of advice."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.names import closest_matches
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import service_url
from fairlead_cli.console import program_name, stdout_console
from fairlead_cli.errors import StackUnreachable
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, report_failure
from fairlead_cli.local.run_directory import newest_stack, running_stacks
from fairlead_cli.local.status.report import PoolScaling, build_report
from fairlead_cli.management import api_types
from fairlead_cli.management.client import GatewaySnapshot, ManagementClient
from fairlead_cli.output import OutputFlag, OutputFormat, format_document, is_document
from fairlead_cli.target import ModelFlag

DECISIONS = 5


def local_status(
    model: ModelFlag = None,
    *,
    manage: Annotated[
        str | None, Parameter(help="A gateway's management address. Default: that of the running `fairlead up`.")
    ] = None,
    output: OutputFlag = "table",
) -> int:
    """Show what the stack of `fairlead up` serves, how well, its last decisions, and what to do
    next.

    Exits 0 when all is well, 1 on a problem, 2 on wrong usage, 3 when no gateway can be reached.
    """
    try:
        stack = None if manage else newest_stack("--manage")
        address = stack.manage if stack else service_url(manage or "", flag="--manage")
        known = stack or next((running for running in running_stacks() if running.manage == address), None)
        snapshot, key = asyncio.run(_fetch(address, read_settings(CliSettings, os.environ).manage_token, model))
    except StackUnreachable as error:
        return report_failure("local status", error, UNREACHABLE)
    wanted: Mapping[str, int] = known.engines if known else {}
    url = known.url if known else None
    sized = _sized(known.autoscaler) if known else {}
    stack_report = build_report(
        snapshot,
        url=url,
        manage=address,
        expected_instances=wanted,
        only_key=key,
        program=program_name(),
        scaling_by_model=sized,
    )
    _print(stack_report, output)
    other_addresses = [running.manage for running in running_stacks() if running != stack] if stack else []
    if other_addresses:
        print(
            f"this is the newest stack; others run too: {program_name()} local status --manage {' or '.join(other_addresses)}",
            file=sys.stderr,
        )
    return PROBLEM if stack_report.has_problem else OK


def _sized(autoscaler: str) -> Mapping[str, Sequence[PoolScaling]]:
    """Returns the autoscaler's decision for each pool, by model. Prints an error to stderr.

    autoscaler: its URL; empty for none. Without an answer, the result is empty.
    """
    if not autoscaler:
        return {}
    from fairlead_cli.scaling.autoscaler_client import read_pool_scaling

    try:
        return read_pool_scaling(autoscaler)
    except (StackUnreachable, LookupError, ValueError) as error:
        print(f"the autoscaler's decisions cannot be read: {error}", file=sys.stderr)
        return {}


async def _fetch(address: str, token: str | None, model: str | None) -> tuple[GatewaySnapshot, str | None]:
    async with ManagementClient(address, token) as management:
        fleet = await management.fleet()
        key = None if model is None else _key(fleet, model)
        return GatewaySnapshot(fleet, await management.stats(), await management.decisions(DECISIONS, key)), key


def _key(fleet: api_types.Fleet, name: str) -> str:
    keys = [model.key for model in fleet.models if name in (model.key, model.name)]
    if len(keys) == 1:
        return keys[0]
    if keys:
        raise BadInput(f"several models are called {name!r}", field="MODEL", hint=f"say which: {', '.join(keys)}")
    names = [model.name for model in fleet.models]
    suggestions = closest_matches(name, names) or names
    raise BadInput(f"no model is called {name!r}", field="MODEL", hint=f"known: {', '.join(suggestions) or 'none'}")


def _print(stack_report: object, output: OutputFormat) -> None:
    from fairlead_cli.local.status.report import StackReport
    from fairlead_cli.local.status.tree import render_tree, to_plain

    assert isinstance(stack_report, StackReport)
    if is_document(output):
        print(format_document(to_plain(stack_report), output))
        return
    stdout_console().print(render_tree(stack_report), overflow="ellipsis", no_wrap=True)
