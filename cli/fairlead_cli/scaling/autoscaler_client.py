"""Asks an autoscaler for what it has seen and decided: that of the running ``fairlead up``, or one that is named."""

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
    """Its URL; ``manage`` is its own address, or that of the gateway of a stack that runs here. Raises NoStack where no stack runs,
    or the one that is meant scales nothing."""
    if manage is not None:
        address = service_url(manage, flag="--manage")
        stack = next((one for one in running_stacks() if one.manage == address), None)
        if stack is None:
            return address
        url = stack.autoscaler
    else:
        url = newest_stack("--manage").autoscaler
    if not url:
        raise StackUnreachable("the stack that runs here has no autoscaler", hint=_HINT)
    return url


def query(url: str, path: str, query: Mapping[str, str]) -> bytes:
    """One answer. Raises NoStack when nobody answers as an autoscaler does, LookupError in its words when it knows nothing of it."""
    token = read_settings(CliSettings, os.environ).manage_token
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            found = client.get(path, params=query)
    except httpx.HTTPError as error:
        raise StackUnreachable(f"{url} does not answer ({type(error).__name__})", hint=_HINT) from error
    if found.status_code in (401, 403):
        raise StackUnreachable(f"{url} refuses ({found.status_code})", hint="set FAIRLEAD_MANAGE_TOKEN to its token")
    if found.status_code == 404 and b'"error"' in found.content:
        raise LookupError(found.json()["error"]["message"])
    if found.status_code != 200:
        raise StackUnreachable(f"{url} is no autoscaler (status {found.status_code})", hint=_HINT)
    return found.content


def read_pool_scaling(url: str) -> dict[str, tuple[PoolScaling, ...]]:
    """What the autoscaler wants of the pools it sizes, by model. Raises as ``ask`` does, and ValueError for what is no answer."""
    said = msgspec.json.decode(query(url, "/autoscaling", {}), type=_Said)
    return {key: tuple(_sized(look)) for key, look in said.models.items()}


class _Said(msgspec.Struct):
    models: dict[str, TickRecord]


def _sized(look: TickRecord) -> Iterator[PoolScaling]:
    facts = {pool.name: pool for pool in look.model.pools}
    for name, ruling in look.rulings.items():
        pool = facts.get(name)
        if pool is not None:
            least, most = ruling.bounds or (pool.minimum, pool.maximum)
            yield PoolScaling(
                name,
                ruling.replicas,
                least,
                most,
                ruling.rule,
                ruling.reason,
                ruling.unwritten
                if (ruling.replicas, ruling.asleep) != (ruling.desired, ruling.asleep_desired)
                else None,
                ruling.asleep,
            )
