"""``fairlead status``, from its arguments to its exit code."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence

from fairlead.errors import BadInput
from fairlead.names import closest_matches
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import service_url
from fairlead_cli.console import program_name, stdout_console
from fairlead_cli.errors import StackUnreachable
from fairlead_cli.local.run_directory import newest_stack, running_stacks
from fairlead_cli.local.status.report import PoolScaling, build_report
from fairlead_cli.management import api_types
from fairlead_cli.management.client import GatewaySnapshot, ManagementClient

OK, PROBLEM, UNREACHABLE = 0, 1, 3
DECISIONS = 5


def run(model: str | None, manage: str | None, output: str) -> int:
    """Ask, print, judge. Raises BadInput for an unknown model."""
    try:
        stack = None if manage else newest_stack("--manage")
        address = stack.manage if stack else service_url(manage or "", flag="--manage")
        known = stack or next((one for one in running_stacks() if one.manage == address), None)
        snapshot, key = asyncio.run(_ask(address, read_settings(CliSettings, os.environ).manage_token, model))
    except StackUnreachable as error:
        print(f"fairlead status: {error}", file=sys.stderr)
        if not manage:
            print("of a cluster: name its kubeconfig by --kubeconfig or KUBECONFIG", file=sys.stderr)
        return UNREACHABLE
    wanted: Mapping[str, int] = known.engines if known else {}
    url = known.url if known else None
    sized = _sized(known.autoscaler) if known else {}
    found = build_report(
        snapshot,
        url=url,
        manage=address,
        expected_instances=wanted,
        only=key,
        program=program_name(),
        scaling_by_model=sized,
    )
    _print(found, output)
    others = [one.manage for one in running_stacks() if one != stack] if stack else []
    if others:
        print(
            f"this is the newest; others run too: {program_name()} status --manage {' or '.join(others)}",
            file=sys.stderr,
        )
    return PROBLEM if found.has_problem else OK


def _sized(autoscaler: str) -> Mapping[str, Sequence[PoolScaling]]:
    """What the stack's autoscaler (a URL; empty: there is none) wants, by model. One that does not answer is told of on stderr."""
    if not autoscaler:
        return {}
    from fairlead_cli.scaling.autoscaler_client import read_pool_scaling

    try:
        return read_pool_scaling(autoscaler)
    except (StackUnreachable, LookupError, ValueError) as error:
        print(f"the autoscaler does not say what it wants: {error}", file=sys.stderr)
        return {}


async def _ask(address: str, token: str | None, model: str | None) -> tuple[GatewaySnapshot, str | None]:
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
    known = [model.name for model in fleet.models]
    close = closest_matches(name, known) or known
    raise BadInput(f"no model is called {name!r}", field="MODEL", hint=f"there is: {', '.join(close) or 'none'}")


def _print(found: object, output: str) -> None:
    from fairlead_cli.local.status.report import StackReport
    from fairlead_cli.local.status.tree import render_tree, to_json

    assert isinstance(found, StackReport)
    if output == "json":
        print(to_json(found).decode())
        return
    stdout_console().print(render_tree(found), overflow="ellipsis", no_wrap=True)
