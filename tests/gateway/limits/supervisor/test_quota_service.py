"""The service of limits in one gateway: what it keeps when it stops."""

import os
from pathlib import Path

import msgspec
import pytest

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.limits.exchange import Need, Row
from fairlead_gateway.limits.messages import QuotaReport, QuotaUpdates, TenantQuotaReport
from fairlead_gateway.limits.supervisor.checkpoint_files import CheckpointFiles
from fairlead_gateway.limits.supervisor.quota_service import MemoryLimitStore, QuotaService
from fairlead_testing.waiting import wait_until

_LIMIT = Limit(LimitUnit.REQUESTS, 1_000, Window.MONTH)


class Worker:
    """A worker that keeps what it is granted."""

    number = 1

    def __init__(self) -> None:
        self.updates: list[QuotaUpdates] = []

    def send(self, message: msgspec.Struct) -> bool:
        assert isinstance(message, QuotaUpdates)
        self.updates.append(message)
        return True


def report(rows: list[tuple[str, Row]], needs: list[tuple[str, Need]]) -> QuotaReport:
    return QuotaReport([TenantQuotaReport("acme", rows, needs)])


@pytest.mark.parametrize("enforcement", list(Enforcement))
async def test_a_restart_without_redis_forgets_no_use_of_the_last_seconds(
    enforcement: Enforcement, tmp_path: Path
) -> None:
    clock, worker = SystemClock(), Worker()

    def create() -> QuotaService:
        store = MemoryLimitStore(clock)
        service = QuotaService(store, "gw", clock=clock, limits=Limits(), checkpoint_folder=tmp_path)
        service.set_tenants([Tenant("acme", limits=(_LIMIT,), enforcement=enforcement)])
        service.start()
        return service

    first = create()
    first.on_report(worker, report([], [(_LIMIT.id, Need("", 100, 100))]))
    await wait_until(lambda: len(worker.updates) == 1)
    start = worker.updates[0].updates[0][1].start
    spent = (_LIMIT.id, Row("", start, 100, 0, 100))
    first.on_report(worker, report([spent], [(_LIMIT.id, Need("", 100, 100))]))
    await wait_until(lambda: len(worker.updates) == 2)
    first.on_report(worker, report([(_LIMIT.id, Row("", start, 200, 50, 150))], []))
    first.on_worker_exit(worker)
    await first.stop()
    await create().stop()  # before it has read the checkpoint
    last = create()
    (state,) = await last.states(None, 10)
    await last.stop()
    assert state.used == 150


async def test_checkpoints_of_gateways_that_ended_months_ago_are_removed(tmp_path: Path) -> None:
    clock = SystemClock()
    for gateway, days in (("old", 71), ("recent", 69), ("gw", 71)):
        CheckpointFiles(tmp_path, gateway, 1_000).write({})
        written = clock.wall() - days * 86_400
        os.utime(tmp_path / f"{gateway}.quota", (written, written))
    store = MemoryLimitStore(clock)
    service = QuotaService(store, "gw", clock=clock, limits=Limits(), checkpoint_folder=tmp_path)
    service.set_tenants([Tenant("acme", limits=(_LIMIT,))])
    service.start()
    await service.states(None, 1)
    assert [name for name in ("gw", "old", "recent") if (tmp_path / f"{name}.quota").exists()] == ["gw", "recent"]
    assert service.warnings() == []
    await service.stop()
