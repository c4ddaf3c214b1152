"""The ledger of a gateway: what is written, what is lost, and what is read."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import EXTERNAL_API, Fleet, Instance, InstanceState, Model, TokenPrice
from fairlead.runtime.clock import ManualClock
from fairlead.usage.checkpoints import Retention, maintain
from fairlead.usage.ledger_files import USAGE, list_files
from fairlead.usage.ledger_reader import read_ledger
from fairlead_gateway.usage.messages import UsageRow
from fairlead_gateway.usage.supervisor import (
    EngineReadings,
    LedgerBounds,
    LedgerWriter,
    RequestPricing,
    TenantCounters,
    UsageService,
)
from fairlead_testing.waiting import wait_until

NOON = 20_781 * 86_400 + 43_200.0
DAY = "2026-11-24"
PROFILE = builtin_profile("tiny-cpu")
READINGS = EngineReadings(lambda _: None, lambda _: None)


PRICE = TokenPrice(400, 100, 1200)


def fleet(price: TokenPrice | None = PRICE) -> Fleet:
    def instance(id: str, pool: str) -> Instance:
        return Instance(id, "x", "tiny", pool, "http://e:1", profile=PROFILE, replica_nano_usd_per_hour=3_600)

    model = Model("x", "tiny", price=price)
    return Fleet(1, 1, {"x/tiny": model}, {"x/tiny": (instance("a/1/0", "main"), instance("b/1/0", "prefill"))})


def row(id: str, tenant: str = "acme", **fields: object) -> UsageRow:
    values = {
        "ended_wall": NOON, "key": "prod", "tier": "Standard", "model": "x/tiny", "instance": "a/1/0", "pool": "main",
        "prefill_instance": "", "status": 200, "input_tokens": 1000, "cached_tokens": 600, "output_tokens": 50,
        "is_estimated": False, **fields,
    }  # fmt: skip
    return UsageRow(id=id, tenant=tenant, **values)  # type: ignore[arg-type]


class Ledger:
    """A service with a manual clock; `run` uses one event loop."""

    def __init__(self, folder: Path, gateway: str = "gw-1", **bounds: Any) -> None:
        self.clock = ManualClock(100.0, NOON)
        self.folder = folder
        self.service = UsageService(folder, gateway, READINGS, clock=self.clock, bounds=LedgerBounds(**bounds))
        self.service.update_fleet(fleet())

    def add(self, *rows: UsageRow, dropped: int = 0) -> None:
        self.service.on_rows(rows, dropped)

    def requests(self) -> int:
        return sum(usage.requests for usage in read_ledger(self.folder, DAY, DAY).usage)


def test_record_of_an_external_endpoint_says_so_and_has_no_engine_time() -> None:
    pricing, here = RequestPricing(READINGS), fleet()
    outside = tuple(replace(instance, engine=EXTERNAL_API) for instance in here.instances["x/tiny"])
    pricing.update_fleet(replace(here, instances={"x/tiny": outside}))
    record = pricing.record(row("r"))
    assert (record.is_external, record.engine_microseconds) == (True, 0)
    assert record.cost_nano_usd == 400 * 400 + 600 * 100 + 50 * 1200


def test_record_has_cost_saving_and_engine_time() -> None:
    pricing = RequestPricing(READINGS)
    pricing.update_fleet(fleet())
    record = pricing.record(row("r"))
    assert (record.cost_nano_usd, record.saved_nano_usd) == (400 * 400 + 600 * 100 + 50 * 1200, 600 * 300)
    decode = 49 * PROFILE.step_time(computed=1, sequences=1, resident=1025)
    assert record.engine_microseconds == round(PROFILE.prefill_time(1000, 600) * 1e6) + round(decode * 1e6)
    assert (record.day, record.at, record.tenant, record.key) == (DAY, "2026-11-24T12:00:00.000Z", "acme", "prod")


def test_prompt_that_another_pool_computed_is_that_pools_time() -> None:
    pricing = RequestPricing(READINGS)
    pricing.update_fleet(fleet())
    whole, split = pricing.record(row("r")), pricing.record(row("r", prefill_instance="b/1/0"))
    assert split.prefill_pool == "prefill"
    assert split.prefill_microseconds + split.engine_microseconds == whole.engine_microseconds


def test_model_without_a_price_has_use_and_no_cost() -> None:
    pricing = RequestPricing(READINGS)
    pricing.update_fleet(fleet(None))
    record = pricing.record(row("r"))
    assert (record.input_tokens, record.cost_nano_usd, record.saved_nano_usd) == (1000, None, None)


def test_instance_that_has_left_is_known_for_its_last_requests() -> None:
    pricing = RequestPricing(READINGS)
    pricing.update_fleet(fleet())
    before = pricing.record(row("r"))
    pricing.update_fleet(replace(fleet(), instances={}))
    assert pricing.record(row("r")) == before


def test_records_are_read_once_they_are_flushed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(row("a"), row("b"))
    assert ledger.requests() == 0
    asyncio.run(ledger.service.flush())
    assert ledger.requests() == 2
    content = asyncio.run(ledger.service.read(DAY, DAY))
    assert [(usage.tenant, usage.requests, usage.cost_nano_usd) for usage in content.usage] == [("acme", 2, 560_000)]


async def test_replicas_are_logged_while_they_exist(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.clock.advance(30.0)
    starting = replace(fleet().instances["x/tiny"][0], state=InstanceState.STARTING)
    ledger.service.update_fleet(replace(fleet(), instances={"x/tiny": (starting,)}))
    ledger.clock.advance(15.0)
    spans = (await ledger.service.read(DAY, DAY)).replicas
    assert sorted((span.replica, span.end - span.start, span.view.state) for span in spans) == [
        ("a/1/0", 15, "Starting"),
        ("a/1/0", 30, "Ready"),
        ("b/1/0", 30, "Ready"),
    ]


def test_disk_that_takes_nothing_is_a_warning_and_records_wait(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("no folder")
    ledger = Ledger(folder)
    ledger.add(row("a"))
    asyncio.run(ledger.service.flush())
    (warning,) = ledger.service.warnings()
    assert warning.startswith("the usage ledger cannot be written: ")
    assert ledger.service.metrics()["usage_records_pending"] == 2
    folder.unlink()
    asyncio.run(ledger.service.flush())
    assert (ledger.requests(), ledger.service.warnings()) == (1, [])


async def test_records_beyond_the_bound_are_lost_and_shown(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, max_pending=3)
    ledger.add(*(row(str(number)) for number in range(4)), dropped=5)
    await ledger.service.flush()
    assert ledger.requests() == 2  # and a line of the replica log
    assert ledger.service.metrics()["usage_records_lost_total"] == 7
    assert ledger.service.warnings() == ["7 usage records were lost; reports since the start of this gateway lack them"]


def test_failed_write_leaves_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LedgerWriter(tmp_path, "gw", 10**6)
    writer.append(USAGE, DAY, [b'{"whole": 1}'])
    real_write = os.write

    def write_half(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, bytes(data)[:20])

    monkeypatch.setattr(os, "write", write_half)
    with pytest.raises(OSError, match="No space left"):
        writer.append(USAGE, DAY, [b'{"second": 22222222222222222}'])
    monkeypatch.undo()
    writer.append(USAGE, DAY, [b'{"third": 3}'])
    (file,) = list_files(tmp_path)
    assert file.lines.read_bytes() == b'{"whole": 1}\n{"third": 3}\n'


def test_long_file_is_continued_and_the_oldest_part_becomes_totals(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path, "gw", 1_000)
    pricing = RequestPricing(READINGS)
    pricing.update_fleet(fleet())
    for at in range(20):
        writer.append(USAGE, DAY, [msgspec.json.encode(pricing.record(row(str(at))))])
    writer.close()
    files = list_files(tmp_path)
    assert len(files) > 3
    assert {file.gateway.partition("~")[0] for file in files} == {"gw"}
    removed = maintain(tmp_path, DAY, "2026-01-01", Retention(30, 2_500))
    assert 0 < len(removed) < len(files) - 1
    assert sum(usage.requests for usage in read_ledger(tmp_path, DAY, DAY).usage) == 20
    again = LedgerWriter(tmp_path, "gw", 1_000)  # lines before what a checkpoint covers would not count
    again.append(USAGE, DAY, [msgspec.json.encode(pricing.record(row("last")))])
    assert sum(usage.requests for usage in read_ledger(tmp_path, DAY, DAY).usage) == 21


async def test_late_record_of_a_day_whose_lines_are_gone_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for at in (1, 2):
        ledger.add(row(f"late-{at}", ended_wall=NOON - 3 * 86_400.0))
        await ledger.service.flush()
        maintain(tmp_path, DAY, DAY, Retention(0, 0))
        ledger.service._writer.close()
    assert [usage.requests for usage in read_ledger(tmp_path, "2026-11-21", "2026-11-21").usage] == [2]


def test_incomplete_line_of_a_crash_is_ended_before_the_next(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(row("a"), row("b"))
    asyncio.run(ledger.service.flush())
    (file,) = (listed for listed in list_files(tmp_path) if listed.kind == USAGE)
    file.lines.write_bytes(file.lines.read_bytes()[:-7])
    restarted = Ledger(tmp_path)
    restarted.add(row("c"))
    asyncio.run(restarted.service.flush())
    assert restarted.requests() == 2


async def test_stop_writes_what_is_pending_and_maintains_old_days(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, flush_seconds=0.001, lines_days=0)
    ledger.add(row("old", ended_wall=NOON - 5 * 86_400.0))
    ledger.service.start()
    await wait_until(lambda: any(file.checkpoint.exists() for file in list_files(tmp_path)))
    ledger.add(row("last"))
    await ledger.service.stop()
    assert sum(usage.requests for usage in read_ledger(tmp_path, "2026-11-01", DAY).usage) == 2
    assert [file.lines.exists() for file in list_files(tmp_path) if file.kind == USAGE] == [False, True]


def test_tenants_that_use_most_have_series_and_the_rest_is_other() -> None:
    counters = TenantCounters(2)
    pricing = RequestPricing(READINGS)
    pricing.update_fleet(fleet())
    for at, tenant in enumerate(["a", "a", "b", "c", "c", "c", "other"]):
        counters.add(pricing.record(row(str(at), tenant)), float(at))
    assert {tenant: counts.requests for tenant, counts in counters.series()} == {"a": 2, "c": 1, "other": 3}
    assert dict(counters.metric_values()["tenant_input_tokens_total"]) == {"a": 2000, "c": 1000, "other": 3000}


def test_counters_of_tenants_never_fall_while_they_are_shown() -> None:
    counters = TenantCounters(3)
    pricing = RequestPricing(READINGS)
    pricing.update_fleet(fleet())
    before: dict[str, int] = {}
    for at in range(400):
        counters.add(pricing.record(row(str(at), f"t{(at * at) % 7}")), at * 60.0)
        totals = {name: counts.requests for name, counts in counters.series()}
        assert len(totals) <= 4
        assert all(totals[name] >= count for name, count in before.items() if name in totals and name == "other")
        before = totals
