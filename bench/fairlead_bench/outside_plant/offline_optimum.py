"""The cheapest schedule found with knowledge of the future, for 99 % within both latency targets.

1. A fleet of each fixed size runs once. This gives the late requests of each block of time by size.
2. Dynamic programming finds the sizes by block with the least cost: time, starts, and a price for
   each late request. The price is bisected until the plant itself keeps 99 % under the schedule.
3. Sizes of short runs of blocks are lowered by one where the plant still keeps 99 %. Each trial
   simulates only the time around these blocks; a run of the whole confirms what was lowered.

Starts are paid, and are ordered early enough to be ready at the block's beginning.

A search takes a minute and depends on nothing but the plant, so that optima are kept in a file. An
entry counts as long as its fingerprint holds.
"""

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fairlead_bench.outside_plant.plant import Plant, PlantOptions, ScheduledSize
from fairlead_bench.outside_plant.scenario import RequestList, Scenario

TARGET_SHARE = 0.99
OPTIMUM_FILE = Path(__file__).with_name("offline_optima.json")
AMPLE_REPLICAS = 40
"""The size of the other pools while one pool's sizes are tried."""
_MEAN_START_SECONDS = 140.0
_MEAN_DRAIN_SECONDS = 15.0
_PRICE_STEPS = 9
_FLAT_SIZES = 6
_LOWERED_BLOCKS = (8, 3, 1)
_WARM_UP_SECONDS, _AFTERMATH_SECONDS = 180.0, 120.0
_SEARCH_VERSION = 1
_PROBE_SECONDS = 1800.0
_NEGLIGIBLE_SHARE, _HOPELESS_SHARE = 0.0005, 0.3

BlockSizes = dict[str, list[int]]
"""Replicas by pool, for each block of time."""
SizeCurves = dict[str, dict[int, list[int]]]
"""Late requests by pool, fixed size and block of arrival."""


@dataclass(frozen=True, slots=True)
class OfflineOptimum:
    """The best schedule found.

    late_by_size: share of late requests by pool and fixed size, the other pools ample
    """

    replica_hours: float
    late_share: float
    late_by_size: Mapping[str, Mapping[int, float]]
    runs: int

    def steady_replicas(self) -> Mapping[str, int | None]:
        """Returns by pool the smallest fixed size that keeps 99 %; None if none was found."""
        return {
            pool: min((size for size, late in curve.items() if late <= 1.0 - TARGET_SHARE), default=None)
            for pool, curve in self.late_by_size.items()
        }


class OptimumSearch:
    """The search for one scenario under one gateway rule."""

    def __init__(self, scenario: Scenario, options: PlantOptions) -> None:
        self._scenario, self._options = scenario, options
        self._blocks = max(round(scenario.seconds / scenario.block_seconds), 1)
        self._allowed = int((1.0 - TARGET_SHARE) * len(scenario.requests) + 1e-9)
        self._best: tuple[float, int, BlockSizes] | None = None
        self.runs = 0

    def search(self) -> OfflineOptimum:
        """Returns the best schedule found. Raises ValueError if none keeps 99 %."""
        curves = self.size_curves()
        total = len(self._scenario.requests)
        late_by_size = {
            pool: {size: round(sum(late) / total, 5) for size, late in sorted(curve.items())}
            for pool, curve in curves.items()
        }
        self._bisect_price(curves)
        for length in _LOWERED_BLOCKS:
            self._lower_runs(length)
        if self._best is None:
            raise ValueError(f"{self._scenario.family}, seed {self._scenario.seed}: no schedule keeps {TARGET_SHARE}")
        cost, late, _ = self._best
        return OfflineOptimum(round(cost, 4), round(late / total, 5), late_by_size, self.runs)

    def size_curves(self) -> SizeCurves:
        return {setup.name: self._pool_curve(setup.name) for setup in self._scenario.pools}

    def _pool_curve(self, pool: str) -> dict[int, list[int]]:
        setup = next(setup for setup in self._scenario.pools if setup.name == pool)
        counts = [0] * self._blocks
        for arrival in self._scenario.requests.arrivals:
            counts[self._block_of(arrival)] += 1
        arrivals = counts
        found: dict[int, list[int]] = {}
        size = max(setup.initial, 1)
        while size <= setup.maximum:
            found[size] = self._late_of_fixed(pool, size)
            late = sum(found[size])
            is_flat = late >= 0.97 * sum(found.get(size - _FLAT_SIZES, [math.inf]))
            if late <= _NEGLIGIBLE_SHARE * len(self._scenario.requests) or is_flat:
                break
            size += 1
        size = max(setup.initial, 1) - 1
        while size >= 1:
            found[size] = self._late_of_fixed(pool, size)
            shares = [late / count for late, count in zip(found[size], arrivals, strict=True) if count]
            if min(shares) > _HOPELESS_SHARE:
                break
            size -= 1
        if size == 0 and setup.minimum == 0:
            found[0] = arrivals
        return found

    def _block_of(self, time: float) -> int:
        return min(int(time / self._scenario.block_seconds), self._blocks - 1)

    def _late_of_fixed(self, pool: str, size: int) -> list[int]:
        sizes = {
            setup.name: [size if setup.name == pool else AMPLE_REPLICAS] * self._blocks
            for setup in self._scenario.pools
        }
        self._plant_run(self._scenario, sizes, 0.0)
        counts = [0] * self._blocks
        late = self._scenario.requests.late(self._scenario.ttft, self._scenario.gap)
        for arrival, is_late in zip(self._scenario.requests.arrivals, late, strict=True):
            counts[self._block_of(arrival)] += is_late
        return counts

    def _bisect_price(self, curves: SizeCurves) -> None:
        """Lowers the price of late requests as far as the plant still keeps its share."""
        low, high = 1.0, 100_000.0
        for _ in range(_PRICE_STEPS):
            price = (low * high) ** 0.5
            sizes = {pool: self._cheapest_path(curve, price) for pool, curve in curves.items()}
            if self._try(sizes):
                high = price
            else:
                low = price
        if self._best is None:
            self._try({pool: self._cheapest_path(curve, 1e7) for pool, curve in curves.items()})

    def _cheapest_path(self, curve: Mapping[int, Sequence[int]], price: float) -> list[int]:
        """Returns the sizes by block with the least sum of time, starts, drains and priced late
        requests. The first size is free of a start."""
        sizes = sorted(curve)
        seconds = self._scenario.block_seconds
        totals = [0.0] * len(sizes)
        choices: list[list[int]] = []
        for block in range(self._blocks):
            chosen = []
            after = []
            for size in sizes:
                costs = [
                    total
                    + (max(size - before, 0) * _MEAN_START_SECONDS + max(before - size, 0) * _MEAN_DRAIN_SECONDS)
                    * (block > 0)
                    for total, before in zip(totals, sizes, strict=True)
                ]
                best = costs.index(min(costs))
                chosen.append(best)
                after.append(costs[best] + size * seconds + price * curve[size][block])
            choices.append(chosen)
            totals = after
        index = totals.index(min(totals))
        path = []
        for chosen in reversed(choices):
            path.append(sizes[index])
            index = chosen[index]
        return path[::-1]

    def _lower_runs(self, length: int) -> None:
        """Lowers runs of ``length`` blocks by one replica where the budget of late requests allows
        it, first where it saves most for each."""
        if self._best is None:
            return
        _, late, sizes = self._best
        gains = []
        for pool, path in sizes.items():
            for start in range(0, self._blocks, length):
                blocks = range(start, min(start + length, self._blocks))
                lowered = [size - 1 if block in blocks else size for block, size in enumerate(path)]
                saved = self._path_seconds(path) - self._path_seconds(lowered)
                if saved > 0 and min(lowered) >= min(min(path), 0 if min(path) == 0 else 1):
                    gains.append((pool, blocks, saved))
        spare = self._allowed - late
        trials = []
        for pool, blocks, saved in gains:
            extra = self._extra_late(sizes, pool, blocks)
            if extra <= spare:
                trials.append((extra / saved, extra, pool, blocks))
        accepted = []
        for _, extra, pool, blocks in sorted(trials, key=lambda trial: trial[0]):
            if extra <= spare:
                spare -= max(extra, 0)
                accepted.append((pool, blocks))
        while accepted:
            candidate = {pool: list(path) for pool, path in sizes.items()}
            for pool, blocks in accepted:
                for block in blocks:
                    candidate[pool][block] -= 1
            if self._try(candidate):
                return
            accepted = accepted[: len(accepted) * 2 // 3]

    def _extra_late(self, sizes: BlockSizes, pool: str, blocks: range) -> int:
        """Returns how many more requests are late if the blocks have one replica less, from a
        run of the time around them."""
        seconds = self._scenario.block_seconds
        start = max(blocks.start * seconds - _WARM_UP_SECONDS, 0.0)
        end = min(blocks.stop * seconds + _AFTERMATH_SECONDS, self._scenario.seconds)
        part = cut(self._scenario, start, end)
        lowered = {name: list(path) for name, path in sizes.items()}
        for block in blocks:
            lowered[pool][block] -= 1
        return self._plant_run(part, lowered, start)[1] - self._plant_run(part, sizes, start)[1]

    def _path_seconds(self, path: Sequence[int]) -> float:
        changes = sum(
            max(after - before, 0) * _MEAN_START_SECONDS + max(before - after, 0) * _MEAN_DRAIN_SECONDS
            for before, after in pairwise(path)
        )
        return sum(path) * self._scenario.block_seconds + changes

    def _try(self, sizes: BlockSizes) -> bool:
        """Runs the whole. Returns whether enough requests are in time; keeps the cheapest such."""
        cost, late = self._plant_run(self._scenario, sizes, 0.0)
        if late > self._allowed:
            return False
        if self._best is None or cost < self._best[0]:
            self._best = (cost, late, sizes)
        return True

    def _plant_run(self, scenario: Scenario, sizes: BlockSizes, start: float) -> tuple[float, int]:
        """Runs a schedule from ``start`` on; returns its replica-hours and its late requests."""
        self.runs += 1
        seconds = self._scenario.block_seconds
        first = self._block_of(start)
        pools = tuple(replace(setup, initial=sizes[setup.name][first]) for setup in scenario.pools)
        schedule = [
            ScheduledSize(block * seconds - start, name, path[block])
            for name, path in sizes.items()
            for block in range(first + 1, self._blocks)
            if path[block] != path[block - 1] and block * seconds - start < scenario.seconds
        ]
        record = Plant(replace(scenario, pools=pools), self._options).run(None, schedule)
        return record.replica_hours, sum(scenario.requests.late(scenario.ttft, scenario.gap))


def cut(scenario: Scenario, start: float, end: float) -> Scenario:
    """Returns the part of a scenario between two times, which become 0 and its length."""
    requests = scenario.requests
    low, high = bisect_left(requests.arrivals, start), bisect_left(requests.arrivals, end)
    part = RequestList(
        [arrival - start for arrival in requests.arrivals[low:high]],
        requests.prompts[low:high],
        requests.answers[low:high],
    )
    return replace(
        scenario,
        seconds=end - start,
        requests=part,
        crashes=tuple(
            replace(crash, time=crash.time - start) for crash in scenario.crashes if start <= crash.time < end
        ),
        slowdowns=tuple(
            replace(slow, start=max(slow.start - start, 0.0), end=slow.end - start)
            for slow in scenario.slowdowns
            if slow.start < end and slow.end > start
        ),
        windows=(),
        shocks=(),
    )


def fingerprint(scenario: Scenario, options: PlantOptions) -> str:
    """Returns a digest of what the optimum depends on: the scenario and the plant's behaviour."""
    requests = scenario.requests
    probe = cut(scenario, 0.0, min(_PROBE_SECONDS, scenario.seconds))
    record = Plant(probe, PlantOptions(options.gateway_rule)).run(None)
    facts = (
        _SEARCH_VERSION,
        [requests.arrivals, requests.prompts, requests.answers],
        [scenario.pools, scenario.ttft, scenario.gap, scenario.patience, scenario.crashes, scenario.slowdowns],
        [scenario.seconds, scenario.block_seconds, scenario.transfer_per_token],
        [round(record.replica_hours, 6), record.abandoned, sum(probe.requests.late(scenario.ttft, scenario.gap))],
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


class OptimumFile:
    """The optima of a file. ``find`` searches what is missing and adds it."""

    def __init__(self, file: Path = OPTIMUM_FILE) -> None:
        self._file = file
        self._entries = self._read()

    def find(self, scenario: Scenario, options: PlantOptions, *, may_search: bool = True) -> OfflineOptimum | None:
        """Returns the optimum; None if it is not known and ``may_search`` is false."""
        name = f"{scenario.family}/{scenario.seed}/{options.gateway_rule}"
        digest = fingerprint(scenario, options)
        entry = self._entries.get(name)
        if entry is not None and entry["fingerprint"] == digest:
            curves = {
                pool: {int(size): late for size, late in curve.items()} for pool, curve in entry["late_by_size"].items()
            }
            return OfflineOptimum(entry["replica_hours"], entry["late_share"], curves, entry["runs"])
        if not may_search:
            return None
        found = OptimumSearch(scenario, PlantOptions(options.gateway_rule)).search()
        self._entries = {**self._read(), name: {"fingerprint": digest, **asdict(found)}}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(self._entries.items())]
        self._file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return found

    def _read(self) -> dict[str, Any]:
        entries: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        return entries
