"""With one secret and the same recent prompts, all replicas and workers compute the same homes."""

import os
import subprocess
import sys
from random import Random

from xxhash import xxh3_64_hexdigest

from fairlead.fleet.model import Instance, Model
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest

COUNT = 100_000
SENT = 2_000
FLEET = [f"main-{at}/8000/0" for at in range(8)]
ENDS = [tuple(range(2_048, 2_048 * (blocks + 1), 2_048)) for blocks in range(14)]


def prompts() -> list[RouteRequest]:
    """Returns prompts in blocks of 2 KiB; some share up to ten blocks."""
    draw = Random(5)
    roots = [tuple(draw.getrandbits(64) for _ in range(10)) for _ in range(40)]
    requests = []
    for number in range(COUNT):
        shared = roots[min(draw.randrange(40) for _ in range(20))][: draw.randrange(11)]
        hashes = (*shared, *[draw.getrandbits(64) for _ in range(3)])
        requests.append(RouteRequest(f"r{number}", PrefixChain(hashes, ENDS[len(hashes)], 0), 4_096.0))
    return requests


def make_router(fleet: list[str]) -> ModelRouter:
    router = ModelRouter(secret=b"one secret")
    router.update(Model("default", "m"), [Instance(name, "default", "m", "main", "") for name in fleet])
    return router


def digest(router: ModelRouter, asked: list[RouteRequest]) -> str:
    return xxh3_64_hexdigest("\n".join(" ".join(router.homes(request)) for request in asked).encode())


def seen_elsewhere() -> str:
    """A replica with another order of instances, which has the prompts from another gateway."""
    asked = prompts()
    router = make_router(FLEET[::-1])
    for request in asked[:SENT]:
        router.on_peer_dispatch(FLEET[0], request.chain, 0.0)
    return digest(router, asked)


def test_every_replica_and_worker_has_the_same_homes_for_the_same_prompts() -> None:
    asked = prompts()
    here = make_router(FLEET)
    alone = digest(here, asked)
    for request in asked[:SENT]:
        here.choose_instance(request, 0.0)
    expected = digest(here, asked)
    assert expected != alone  # hot prefixes matter
    environ = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    child = subprocess.run([sys.executable, __file__], env=environ, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == expected


if __name__ == "__main__":
    print(seen_elsewhere())
