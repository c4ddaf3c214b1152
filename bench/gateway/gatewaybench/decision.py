"""The decision alone: parse, validate, hash, match, pick and insert, with the gateway's own code and a full index.

It runs in a process that is started as a worker is, so that it measures the compiled copy where workers run one.

The index is filled to its limit before, so every insertion also drops the oldest blocks, as in a gateway that has run for a while.

``followed``: engines tell what they hold. Then the blocks that were sent are confirmed by the index as well, each prompt is put aside
for the helper, and holders are known by two bits instead of one. ``CROWDED``: among 64 engines that all are busy, and the p99.
"""

import asyncio
import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fairlead.compiled import worker_environment
from fairlead.fleet import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.profile import presets
from fairlead_gateway.head import Head
from fairlead_gateway.index_telling import IndexTeller
from fairlead_gateway.model import understand
from fairlead_gateway.prompt import route_request
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from gatewaybench.bodies import SIZES, UNIQUE, bodies
from gatewaybench.cases import CROWDED, FOLLOWED

INSTANCES = 10
INSTANCES_CROWDED = 64
BUSY_EACH = 4
"""Requests in flight on each of many, so that mean and least are worked out and not known to be nothing."""
_SECRET = b"bench"
_CHAIN_BLOCKS = 500
_BLOCK_BYTES = 256
_PATH = "/v1/chat/completions"
_KV_TOKENS = 1 << 40  # the index is bounded by its blocks, not by what an engine can hold


def decisions_seconds(sizes: Sequence[str], *, blocks: int, seed: int) -> dict[str, float]:
    """``decision_seconds`` by size (and ``FOLLOWED``, where engines tell, or ``CROWDED``, then the p99), each measured in a process
    like a worker's."""
    environ = worker_environment(os.environ)
    here = str(Path(__file__).parents[1])
    environ["PYTHONPATH"] = os.pathsep.join(part for part in (environ.get("PYTHONPATH"), here) if part)
    found = {}
    for size in sizes:
        command = [sys.executable, "-m", "gatewaybench.decision", str(blocks), str(seed), size]
        found[size] = float(subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout)
    return found


class _Later:
    """What is to be done when nobody is measured: a loop, as far as whoever tells the helper needs one, and the channel to it."""

    def __init__(self) -> None:
        self._due: list[Callable[[], object]] = []

    def call_later(self, _seconds: float, callback: Callable[[], object]) -> None:
        """Keep it."""
        self._due.append(callback)

    def send(self, _message: object) -> bool:
        """Sent."""
        return True

    def run(self) -> None:
        """Now."""
        due, self._due = self._due, []
        for callback in due:
            callback()


def decision_seconds(
    size: str,
    *,
    blocks: int,
    seed: int,
    followed: bool = False,
    crowded: bool = False,
    batches: int = 20,
    batch: int = 100,
) -> float:
    """Seconds of one decision: the median of the means of ``batches`` batches, of the p99s where it is ``crowded``."""
    instances = INSTANCES_CROWDED if crowded else INSTANCES
    limits = replace(Limits(), mirror_blocks_per_instance=blocks // instances)
    fleet = _fleet(instances, followed=followed)
    (key,) = fleet.models
    later = _Later()
    teller = IndexTeller(later, cast(asyncio.AbstractEventLoop, cast(Any, later)), limits)
    router = ModelRouter(secret=_SECRET, limits=limits, told=teller.hooks)
    router.update(fleet.models[key], fleet.instances[key], fleet.membership_epoch)
    _fill(router, blocks, instances, random.Random(seed), followed=followed)
    if crowded:
        _occupy(router, instances, random.Random(seed))
    texts = bodies(SIZES[size], count=64, seed=seed, max_tokens=128, stream=False)
    head = Head("POST", _PATH, [(b"host", b"localhost")], 11, 0, True, False)
    gc.collect()
    gc.freeze()
    try:
        figures = []
        for turn in range(batches):
            wanted = [
                texts[number % len(texts)].replace(UNIQUE, f"{turn * batch + number:016x}").encode()
                for number in range(batch)
            ]
            spent = _batch(wanted, f"turn-{turn}", router, fleet, limits, head)
            figures.append(sorted(spent)[int(0.99 * len(spent))] if crowded else statistics.fmean(spent))
            later.run()
        return statistics.median(figures)
    finally:
        gc.unfreeze()


def _batch(
    wanted: list[bytes], name: str, router: ModelRouter, fleet: Fleet, limits: Limits, head: Head
) -> list[float]:
    """Of each; the requests' ends are not part of it."""
    spent = []
    for number, body in enumerate(wanted):
        start = time.perf_counter()
        ask = understand(_PATH, body, fleet, limits)
        request = route_request(ask, head, f"{name}-{number}", _SECRET)
        decision = router.decide(request, start)
        assert decision.chosen is not None
        router.dispatched(request, decision.chosen, start)
        spent.append(time.perf_counter() - start)
        router.abandoned(request.id, start)
    return spent


def _fill(router: ModelRouter, blocks: int, instances: int, rng: random.Random, *, followed: bool) -> None:
    """Prompts that nobody will ask for again, evenly on all instances."""
    ends = tuple(range(_BLOCK_BYTES, (_CHAIN_BLOCKS + 1) * _BLOCK_BYTES, _BLOCK_BYTES))
    for number in range(-(-blocks // _CHAIN_BLOCKS)):
        chain = PrefixChain(tuple(rng.getrandbits(64) for _ in ends), ends, 0)
        request = RouteRequest(f"filling-{number}", chain, ends[-1] / 4)
        router.dispatched(request, _instance_id(number % instances), 0.0)
        router.abandoned(request.id, 0.0)
        if followed:
            router.corrected(_instance_id(number % instances), "", (), [chain.hashes])


def _occupy(router: ModelRouter, instances: int, rng: random.Random) -> None:
    """Every instance has requests that wait for their first token, of different lengths."""
    for number in range(instances * BUSY_EACH):
        request = RouteRequest(f"busy-{number}", PrefixChain((), (), rng.getrandbits(64)), rng.uniform(100.0, 8_000.0))
        router.dispatched(request, _instance_id(number % instances), 0.0)


def _fleet(count: int, *, followed: bool) -> Fleet:
    model = Model("default", "bench-model")
    profile = replace(presets()["h100-llama8b"], kv_tokens=_KV_TOKENS)
    instances = tuple(
        Instance(
            _instance_id(number),
            "default",
            model.name,
            "main",
            f"http://127.0.0.1:{9000 + number}",
            profile=profile,
            kv_events=f"tcp://127.0.0.1:{9100 + number}" if followed else None,
        )
        for number in range(count)
    )
    return Fleet(1, 1, {model.key: model}, {model.key: instances})


def _instance_id(number: int) -> str:
    return f"main-{number}/8000/0"


if __name__ == "__main__":
    size, comma, kind = sys.argv[3].partition(",")
    print(
        decision_seconds(
            size,
            blocks=int(sys.argv[1]),
            seed=int(sys.argv[2]),
            followed=comma + kind == FOLLOWED,
            crowded=comma + kind == CROWDED,
        )
    )
