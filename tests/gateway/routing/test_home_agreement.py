"""With one table of hot prefixes and one secret, all replicas and workers compute the
same homes.
"""

import os
import subprocess
import sys
from collections.abc import Hashable
from random import Random

from xxhash import xxh3_64_hexdigest

from fairlead.fleet.model import Instance, Model
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest

COUNT = 100_000
FLEET = [f"main-{at}/8000/0" for at in range(8)]
ENDS = [tuple(range(2_048, 2_048 * (blocks + 1), 2_048)) for blocks in range(14)]


def prompts() -> list[RouteRequest]:
    """Returns prompts in blocks of 2 KiB; some share up to ten blocks."""
    draw = Random(5)
    roots = [tuple(draw.getrandbits(64) for _ in range(10)) for _ in range(40)]
    requests = []
    for number in range(COUNT):
        shared = roots[min(draw.randrange(40), draw.randrange(40))][: draw.randrange(11)]
        hashes = (*shared, *[draw.getrandbits(64) for _ in range(3)])
        requests.append(RouteRequest(f"r{number}", PrefixChain(hashes, ENDS[len(hashes)], 0), 4_096.0))
    return requests


def make_router(fleet: list[str]) -> ModelRouter:
    router = ModelRouter(secret=b"one secret")
    router.update(Model("default", "m"), [Instance(name, "default", "m", "main", "") for name in fleet])
    return router


def table(asked: list[RouteRequest]) -> frozenset[Hashable]:
    """All levels of some prompts, so that the keys of what begins alike reach deeper."""
    return frozenset(digest for request in asked[::500] for digest in request.chain.hashes)


def digest(router: ModelRouter, asked: list[RouteRequest]) -> str:
    return xxh3_64_hexdigest("\n".join(" ".join(router.homes(request)) for request in asked).encode())


def seen_elsewhere() -> str:
    """A replica with another order of instances, other earlier traffic and an older table."""
    asked = prompts()
    router = make_router(FLEET[::-1])
    for request in asked[-2_000:]:
        router.on_dispatch(request, router.choose_instance(request, 0.0).chosen or "", 0.0)
    router.set_hot_prefixes(1, frozenset())
    router.set_hot_prefixes(2, table(asked))
    return digest(router, asked)


def test_every_replica_and_worker_has_the_same_homes_for_the_same_table() -> None:
    asked = prompts()
    here = make_router(FLEET)
    alone = digest(here, asked)
    here.set_hot_prefixes(2, table(asked))
    expected = digest(here, asked)
    assert expected != alone  # the table matters
    environ = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    child = subprocess.run([sys.executable, __file__], env=environ, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == expected


if __name__ == "__main__":
    print(seen_elsewhere())
