"""Asks an autoscaler for what it has seen and decided: that of the running ``fairlead up``, or one that is named."""

import math
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

import httpx
import msgspec

from fairlead.errors import BadInput
from fairlead.settings import CliSettings, read_settings
from fairlead.units import parse_duration
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


def parse_moment(text: str, now: float, flag: str = "--at") -> float:
    """A moment as Unix time: ``5m`` (that long ago), ``14:05[:30]`` (today, or yesterday where that lies ahead), ISO 8601, or Unix
    seconds. Raises BadInput, which names ``flag``."""
    for reader in (_unix, _ago, _today, _iso):
        found = reader(text.strip(), now)
        if found is not None:
            return found
    raise BadInput(
        f"{flag}: {text!r} is no moment", field=flag, hint="write it like 5m (ago), 14:05 or 2026-11-21T14:05"
    )


def _unix(text: str, now: float) -> float | None:
    found = float(text) if text.replace(".", "", 1).isdecimal() else math.inf
    return found if math.isfinite(found) else None


def _ago(text: str, now: float) -> float | None:
    try:
        return now - parse_duration(text.removeprefix("-"), field="--at")
    except BadInput:
        return None


def _today(text: str, now: float) -> float | None:
    for form in ("%H:%M", "%H:%M:%S"):
        try:
            time = datetime.strptime(text, form).time()
        except ValueError:
            continue
        found = datetime.combine(datetime.fromtimestamp(now).date(), time)
        return (found if found.timestamp() <= now else found - timedelta(days=1)).timestamp()
    return None


def _iso(text: str, now: float) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
