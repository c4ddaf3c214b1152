"""When API keys were used last, by what all gateways counted since they started."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.errors import FairleadError, first_line
from fairlead_cli.cluster.timestamps import format_age
from fairlead_cli.formatting import UNKNOWN
from fairlead_cli.keys.api_key import format_time
from fairlead_cli.management.api_types import TenantList
from fairlead_cli.management.client import ManagementClient
from fairlead_cli.management.endpoints import ManagementEndpoint
from fairlead_cli.tenants.selection import TenantsPlace


@dataclass(frozen=True, slots=True)
class KeyUses:
    """The last use of keys.

    started_at: the latest start of a gateway; None if no gateway was read. Why the latest: earlier
    uses are known only from the gateways that were there.

    last_used_at: in Unix time, by the beginning of a digest.

    problems: gateways that were not read, with the reason.
    """

    started_at: float | None = None
    last_used_at: Mapping[str, float] = field(default_factory=dict)
    problems: Sequence[str] = ()

    def time_of(self, digest: str) -> float | None:
        """Returns the last use of a key; None if it is unknown."""
        return next((used for prefix, used in self.last_used_at.items() if digest.startswith(prefix)), None)

    def describe(self, digest: str, now: float) -> str:
        """Returns the last use for people: ``3m ago``, or since when there was none."""
        used_at = self.time_of(digest)
        if used_at is not None:
            return f"{format_age(used_at, now)} ago"
        if self.started_at is None:
            return UNKNOWN
        return f"never seen by these gateways since {format_time(self.started_at)}"


def read_key_uses(place: TenantsPlace) -> KeyUses:
    """Returns the last uses by all gateways that can be read; the others are problems."""
    try:
        endpoints = place.endpoints()
    except FairleadError as error:
        return KeyUses(problems=(first_line(error, 200),))
    lists: list[TenantList] = []
    problems: list[str] = []
    for endpoint in endpoints:
        try:
            lists.append(asyncio.run(_read(endpoint, endpoint.url())))
        except FairleadError as error:
            problems.append(f"{endpoint.name}: {first_line(error, 200)}")
    return merge_key_uses(lists, problems)


def merge_key_uses(lists: Sequence[TenantList], problems: Sequence[str] = ()) -> KeyUses:
    """Returns the latest use of each key over several gateways."""
    merged: dict[str, float] = {}
    for gateway in lists:
        for tenant in gateway.tenants:
            for key in tenant.keys:
                if key.last_used_at is not None:
                    merged[key.digest] = max(key.last_used_at, merged.get(key.digest, key.last_used_at))
    return KeyUses(
        max((started for gateway in lists if (started := gateway.started_at) is not None), default=None),
        merged,
        tuple(problems),
    )


async def _read(endpoint: ManagementEndpoint, url: str) -> TenantList:
    async with ManagementClient(url, endpoint.token) as client:
        return await client.tenants()
