"""Reads ledgers: folders on this machine, or those of gateways over their management API."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from fairlead.usage.ledger_reader import LedgerContent, merge_ledgers, read_ledger
from fairlead.usage.record import UsageTotals
from fairlead.usage.replica_log import ReplicaSpan, ReplicaView
from fairlead_cli.management.api_types import UsageReply
from fairlead_cli.management.client import ManagementClient
from fairlead_cli.management.endpoints import ManagementEndpoint, open_endpoints
from fairlead_cli.usage.options import ReportOptions


def read_ledgers(options: ReportOptions, first_day: str, last_day: str) -> LedgerContent:
    """Returns what all ledgers hold about these days. A shared ledger counts once.

    Raises BadInput, StackUnreachable, and ClusterUnreachable.
    """
    if options.dir:
        return merge_ledgers(_read_folder(folder, first_day, last_day) for folder in options.dir)
    with open_endpoints(options.manage, options.cluster) as endpoints:
        return merge_ledgers(asyncio.run(_query_all(endpoints, first_day, last_day)))


def _read_folder(folder: Path, first_day: str, last_day: str) -> LedgerContent:
    return read_ledger(folder, first_day, last_day)


async def _query_all(endpoints: Sequence[ManagementEndpoint], first_day: str, last_day: str) -> list[LedgerContent]:
    """Returns the answers of all gateways, one after another: ports are forwarded for each."""
    found = []
    for endpoint in endpoints:
        async with ManagementClient(endpoint.url(), endpoint.token) as client:
            found.append(_to_content(await client.usage(first_day, last_day)))
    return found


def _to_content(reply: UsageReply) -> LedgerContent:
    usage = [UsageTotals(**{name: getattr(row, name) for name in UsageTotals.__struct_fields__}) for row in reply.usage]
    replicas = [
        ReplicaSpan(
            span.replica,
            span.start,
            span.end,
            ReplicaView(span.model, span.pool, span.state, span.nano_usd_per_hour),
        )
        for span in reply.replicas
    ]
    return LedgerContent(reply.ledger, usage, replicas, reply.broken, reply.lost)
