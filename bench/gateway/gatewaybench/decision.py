"""The decision alone: parse, validate, hash, match, pick and insert, with the gateway's own code and a full index.

It runs in a process that is started as a worker is, so that it measures the compiled copy where workers run one.

The index is filled to its limit before, so every insertion also drops the oldest blocks, as in a gateway that has run for a while.
"""

import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fairlead.compiled import worker_environment
from fairlead.fleet import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.profile import presets
from fairlead_gateway.head import Head
from fairlead_gateway.model import understand
from fairlead_gateway.prompt import route_request
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from gatewaybench.bodies import SIZES, UNIQUE, bodies

INSTANCES = 10
_SECRET = b"bench"
_CHAIN_BLOCKS = 500
_BLOCK_BYTES = 256
_PATH = "/v1/chat/completions"
_KV_TOKENS = 1 << 40  # the index is bounded by its blocks, not by what an engine can hold


def decisions_seconds(sizes: Sequence[str], *, blocks: int, seed: int) -> dict[str, float]:
    """``decision_seconds`` by size, measured in a process like a worker's."""
    environ = worker_environment(os.environ)
    here = str(Path(__file__).parents[1])
    environ["PYTHONPATH"] = os.pathsep.join(part for part in (environ.get("PYTHONPATH"), here) if part)
    command = [sys.executable, "-m", "gatewaybench.decision", str(blocks), str(seed), *sizes]
    told = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
    return dict(zip(sizes, map(float, told.split()), strict=True))


def decision_seconds(size: str, *, blocks: int, seed: int, batches: int = 20, batch: int = 100) -> float:
    """Seconds of one decision: the median of the means of ``batches`` batches."""
    limits = replace(Limits(), mirror_blocks_per_instance=blocks // INSTANCES)
    fleet = _fleet()
    (key,) = fleet.models
    router = ModelRouter(secret=_SECRET, limits=limits)
    router.update(fleet.models[key], fleet.instances[key], fleet.membership_epoch)
    _fill(router, blocks, random.Random(seed))
    texts = bodies(SIZES[size], count=64, seed=seed, max_tokens=128, stream=False)
    head = Head("POST", _PATH, [(b"host", b"localhost")], 11, 0, True, False)
    gc.collect()
    gc.freeze()
    try:
        means = []
        for turn in range(batches):
            wanted = [
                texts[number % len(texts)].replace(UNIQUE, f"{turn * batch + number:016x}").encode()
                for number in range(batch)
            ]
            means.append(_batch(wanted, f"turn-{turn}", router, fleet, limits, head))
        return statistics.median(means)
    finally:
        gc.unfreeze()


def _batch(wanted: list[bytes], name: str, router: ModelRouter, fleet: Fleet, limits: Limits, head: Head) -> float:
    """The mean; the requests' ends are not part of it."""
    spent = 0.0
    for number, body in enumerate(wanted):
        start = time.perf_counter()
        ask = understand(_PATH, body, fleet, limits)
        request = route_request(ask, head, f"{name}-{number}", _SECRET)
        decision = router.decide(request, start)
        assert decision.chosen is not None
        router.dispatched(request, decision.chosen, start)
        spent += time.perf_counter() - start
        router.abandoned(request.id, start)
    return spent / len(wanted)


def _fill(router: ModelRouter, blocks: int, rng: random.Random) -> None:
    """Prompts that nobody will ask for again, evenly on all instances."""
    ends = tuple(range(_BLOCK_BYTES, (_CHAIN_BLOCKS + 1) * _BLOCK_BYTES, _BLOCK_BYTES))
    for number in range(-(-blocks // _CHAIN_BLOCKS)):
        chain = PrefixChain(tuple(rng.getrandbits(64) for _ in ends), ends, 0)
        request = RouteRequest(f"filling-{number}", chain, ends[-1] / 4)
        router.dispatched(request, _instance_id(number % INSTANCES), 0.0)
        router.abandoned(request.id, 0.0)


def _fleet() -> Fleet:
    model = Model("default", "bench-model")
    profile = replace(presets()["h100-llama8b"], kv_tokens=_KV_TOKENS)
    instances = tuple(
        Instance(
            _instance_id(number), "default", model.name, "main", f"http://127.0.0.1:{9000 + number}", profile=profile
        )
        for number in range(INSTANCES)
    )
    return Fleet(1, 1, {model.key: model}, {model.key: instances})


def _instance_id(number: int) -> str:
    return f"main-{number}/8000/0"


if __name__ == "__main__":
    for wanted in sys.argv[3:]:
        print(decision_seconds(wanted, blocks=int(sys.argv[1]), seed=int(sys.argv[2])))
