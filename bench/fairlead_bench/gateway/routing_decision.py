"""The routing decision alone: parse, validate, hash, match, pick and insert.

It uses the gateway's own code and a full index, in a process that is started like a worker. So it
measures the compiled copy where workers run one. The index is filled to its limit first: every
insertion also drops the oldest blocks, as in a gateway that has run for a while.

``followed``: engines report their caches. The index then also confirms the blocks that were sent.
Each prompt is stored for the supervisor, and instances are known by two bits instead of one. The
slowest of a hundred is in ``tail``.
"""

import asyncio
import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, cast

from fairlead.engine_profile import builtin_profiles
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.compiled_build import worker_environment
from fairlead_bench.gateway.load_cases import SIZES, UNIQUE, WITH_KV_EVENTS, make_bodies
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.journal import Journal, Reporters
from fairlead_gateway.openai.request import build_route_request, parse_request
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts

INSTANCES = 10
_SECRET = b"bench"
_CHAIN_BLOCKS = 500
_BLOCK_BYTES = 256
_PATH = "/v1/chat/completions"
_KV_TOKENS = 1 << 40  # the index is bounded by its blocks, not by what an engine can hold


def decisions_seconds(sizes: Sequence[str], *, blocks: int, seed: int) -> dict[str, float]:
    """Returns seconds per decision by size (and ``WITH_KV_EVENTS``, where engines publish events),
    each measured in a process like a worker's."""
    return {
        size: float(run_like_worker("fairlead_bench.gateway.routing_decision", str(blocks), str(seed), size))
        for size in sizes
    }


def run_like_worker(module: str, *arguments: str) -> str:
    """Returns the output of a module of this benchmark, in a process with a worker's imports."""
    environ = worker_environment(os.environ)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


class DeferredCalls:
    """Calls deferred until nothing is measured: an event loop and an IPC channel, as far as the
    journal needs them."""

    def __init__(self) -> None:
        self._due: list[Callable[[], object]] = []

    def call_later(self, _seconds: float, callback: Callable[[], object]) -> None:
        self._due.append(callback)

    def send(self, _message: object) -> bool:
        return True

    def run(self) -> None:
        """Runs the deferred calls."""
        due, self._due = self._due, []
        for callback in due:
            callback()


class DecisionTime(NamedTuple):
    """Seconds of one decision: all of it, and of that hashing the prompt, matching and picking."""

    whole: float
    routing: float


class DecisionBench:
    """A model's router with a full index, and requests of one size for it; equal arguments decide
    alike."""

    def __init__(self, size: str, *, instances: int, blocks: int, seed: int, followed: bool = False) -> None:
        limits = replace(Limits(), mirror_blocks_per_instance=blocks // instances)
        self._fleet, self._limits = _fleet(instances), limits
        (key,) = self._fleet.models
        self.later = DeferredCalls()
        journal = Journal(self.later, cast(asyncio.AbstractEventLoop, cast(Any, self.later)))
        self.router = ModelRouter(secret=_SECRET, limits=limits, hooks=Reporters(journal).dispatch_hooks())
        self._chain_starts = ChainStarts(_SECRET)
        self.router.update(self._fleet.models[key], self._fleet.instances[key])
        self.router.is_indexed = followed
        _fill(self.router, blocks, instances, random.Random(seed), followed=followed)
        self._texts = make_bodies(SIZES[size], count=64, seed=seed, max_tokens=128, stream=False)
        self._head = RequestHead("POST", _PATH, [(b"host", b"localhost")], 11, 0, True, False)

    def batch(self, turn: int, count: int) -> list[DecisionTime]:
        """Returns the times of ``count`` decisions, without the ends of their requests and without
        deferred reports."""
        first, texts, router = turn * count, self._texts, self.router
        wanted = [
            texts[number % len(texts)].replace(UNIQUE, f"{first + number:016x}").encode() for number in range(count)
        ]
        spent = []
        for number, body in enumerate(wanted):
            start = time.perf_counter()
            ask = parse_request(_PATH, body, self._fleet, self._limits)
            understood = time.perf_counter()
            request = build_route_request(ask, self._head, f"turn-{turn}-{number}", self._chain_starts)
            decision = router.choose_instance(request, start)
            decided = time.perf_counter()
            assert decision.chosen is not None
            router.on_dispatch(request, decision.chosen, start)
            spent.append(DecisionTime(time.perf_counter() - start, decided - understood))
            router.on_abandoned(request.id, start)
        self.later.run()
        return spent


def decision_seconds(
    size: str, *, blocks: int, seed: int, followed: bool = False, batches: int = 20, batch: int = 100
) -> float:
    """Seconds of one decision: the median of the means of ``batches`` batches."""
    decider = DecisionBench(size, instances=INSTANCES, blocks=blocks, seed=seed, followed=followed)
    with frozen_heap():
        return statistics.median(
            [statistics.fmean([one.whole for one in decider.batch(turn, batch)]) for turn in range(batches)]
        )


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Excludes the present objects from garbage collection, as a started worker does."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _fill(router: ModelRouter, blocks: int, instances: int, rng: random.Random, *, followed: bool) -> None:
    """Fills the index with prompts that are not requested again, evenly on all instances."""
    ends = tuple(range(_BLOCK_BYTES, (_CHAIN_BLOCKS + 1) * _BLOCK_BYTES, _BLOCK_BYTES))
    for number in range(-(-blocks // _CHAIN_BLOCKS)):
        chain = PrefixChain(tuple(rng.getrandbits(64) for _ in ends), ends, 0)
        request = RouteRequest(f"filling-{number}", chain, ends[-1] / 4)
        router.on_dispatch(request, instance_id(number % instances), 0.0)
        router.on_abandoned(request.id, 0.0)
        if followed:
            router.apply_correction(instance_id(number % instances), "", (), [chain.hashes])


def _fleet(count: int) -> Fleet:
    model = Model("default", "bench-model")
    profile = replace(builtin_profiles()["h100-llama8b"], kv_tokens=_KV_TOKENS)
    instances = tuple(
        Instance(
            instance_id(number),
            "default",
            model.name,
            "main",
            f"http://127.0.0.1:{9000 + number}",
            profile=profile,
        )
        for number in range(count)
    )
    return Fleet(1, 1, {model.key: model}, {model.key: instances})


def instance_id(number: int) -> str:
    return f"main-{number}/8000/0"


if __name__ == "__main__":
    process_tuning.relax_gc()  # as a worker
    size, comma, kind = sys.argv[3].partition(",")
    print(
        decision_seconds(size, blocks=int(sys.argv[1]), seed=int(sys.argv[2]), followed=comma + kind == WITH_KV_EVENTS)
    )
