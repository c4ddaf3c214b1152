"""A client of the autoscaler's HTTP API: of the running ``fairlead up``, or of an address."""

import os
from collections.abc import Iterator, Mapping
from typing import Final

import httpx
import msgspec

from fairlead.settings import CliSettings, read_settings
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_cli.addresses import service_url
from fairlead_cli.errors import StackUnreachable
from fairlead_cli.local.run_directory import newest_stack, running_stacks
from fairlead_cli.local.status.report import PoolScaling

TIMEOUT_SECONDS: Final = 30.0
_HINT: Final = "a stack has one where a manifest says `autoscaling: {mode: Auto}`; name another's address with --manage"


def find_autoscaler(manage: str | None) -> str:
    """Returns the autoscaler's URL.

    manage: its own address, or the management address of a gateway of a stack on this machine.

    Raises StackUnreachable when no stack runs, or when the stack has no autoscaler.
    """
    if manage is not None:
        address = service_url(manage, flag="--manage")
        stack = next((stack for stack in running_stacks() if stack.manage == address), None)
        if stack is None:
            return address
        url = stack.autoscaler
    else:
        url = newest_stack("--manage").autoscaler
    if not url:
        raise StackUnreachable("the stack that runs here has no autoscaler", hint=_HINT)
    return url


def query(url: str, path: str, query: Mapping[str, str]) -> bytes:
    """Returns the body of one answer.

    Raises StackUnreachable when no autoscaler answers, LookupError with its message when it knows
    nothing.
    """
    token = read_settings(CliSettings, os.environ).manage_token
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            answer = client.get(path, params=query)
    except httpx.HTTPError as error:
        raise StackUnreachable(f"{url} does not answer ({type(error).__name__})", hint=_HINT) from error
    if answer.status_code in (401, 403):
        raise StackUnreachable(f"{url} refuses ({answer.status_code})", hint="set FAIRLEAD_MANAGE_TOKEN to its token")
    if answer.status_code == 404 and b'"error"' in answer.content:
        raise LookupError(answer.json()["error"]["message"])
    if answer.status_code != 200:
        raise StackUnreachable(f"{url} is no autoscaler (status {answer.status_code})", hint=_HINT)
    return answer.content


def read_pool_scaling(url: str) -> dict[str, tuple[PoolScaling, ...]]:
    """Returns the wanted scale of each pool, by model. Raises like ``query``, and ValueError for an
    invalid answer.
    """
    answer = msgspec.json.decode(query(url, "/autoscaling", {}), type=_Said)
    return {key: tuple(_sized(look)) for key, look in answer.models.items()}


class _Said(msgspec.Struct):
    models: dict[str, TickRecord]


def _sized(look: TickRecord) -> Iterator[PoolScaling]:
    pools = {pool.name: pool for pool in look.model.pools}
    for name, ruling in look.rulings.items():
        pool = pools.get(name)
        if pool is not None:
            minimum, maximum = ruling.bounds or (pool.minimum, pool.maximum)
            yield PoolScaling(
                name,
                ruling.replicas,
                minimum,
                maximum,
                ruling.rule,
                ruling.reason,
                ruling.unwritten
                if (ruling.replicas, ruling.asleep) != (ruling.desired, ruling.asleep_desired)
                else None,
                ruling.asleep,
            )
