"""Stalls of a worker's event loop by large request bodies.

Each body is read in two ways, side by side: in a process, as the gateway does, and by the same
parsers in a thread. A thread shares the interpreter's lock with the loop; a process does not.
A stall is the time between two turns of a loop that has a timer every millisecond.

The bodies are the worst that the limits admit, of 31 MiB or of 2 million values. The least of
several repeats counts, since other processes of the machine add to a stall and never shorten it.
They stall a loop that does nothing as well; such stalls are measured too, and subtracted.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter, sleep

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance, Model, SloTargets
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.event_loop import loop_factory
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.proxy.gateway import Gateway
from fairlead_gateway.tenants.worker.api_keys import GatewaySecrets
from fairlead_gateway.tenants.worker.tenant_policy import VisibleModels
from fairlead_gateway.worker.runtime import WorkerRuntime

CHAT_PATH, COMPLETION_PATH = "/v1/chat/completions", "/v1/completions"
IDLE = "nothing"
"""The name of the stall of a loop that does nothing."""
_SIZE = 31 * 1024 * 1024
_VALUES = 2_000_000
_PROBE_SECONDS = 0.001
_IDLE_SECONDS = 0.3
_MAX_STALL_SECONDS = 0.02
_WORST = "longest stall of a worker's loop: in a process ÷ in a thread"
_OVER = "bodies that stall a loop by 20 ms more than nothing does"


def make_bodies(seed: int) -> Mapping[str, tuple[str, bytes]]:
    """Returns path and body by name."""
    draw = random.Random(seed)
    numbers = [b"%d" % draw.randrange(10_000, 150_000) for _ in range(_VALUES)]
    text, escapes = b"the quick brown fox " * (_SIZE // 20), rb"\u00e9" * (_SIZE // 6)
    message = b'"messages":[{"role":"user","content":"%s"}]}'
    transfer = b'{"model":"tiny","kv_transfer_params":{"a":1},'
    short = b",".join(b'{"role":"user","content":"%d","name":null,"x":1}' % n for n in range(150_000))
    return {
        "2 million token ids": (COMPLETION_PATH, b'{"model":"tiny","prompt":[' + b",".join(numbers) + b"]}"),
        "plain text": (CHAT_PATH, b'{"model":"tiny",' + message % text),
        "escaped characters": (CHAT_PATH, b'{"model":"tiny",' + message % escapes),
        "characters of two bytes": (CHAT_PATH, b'{"model":"tiny",' + message % ("é" * (_SIZE // 2)).encode()),
        "kv_transfer_params and plain text": (CHAT_PATH, transfer + message % text),
        "kv_transfer_params and escapes": (CHAT_PATH, transfer + message % escapes),
        "a greedy stream": (CHAT_PATH, b'{"model":"tiny","stream":true,"temperature":0,' + message % text),
        "150,000 messages": (CHAT_PATH, b'{"model":"tiny","messages":[' + short + b"]}"),
    }


class StallProbe:
    """The longest time between two turns of the running loop since `reset`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.longest_seconds = 0.0
        self._last = perf_counter()
        self._timer = self._loop.call_later(_PROBE_SECONDS, self._on_turn)

    def reset(self) -> None:
        """Forgets earlier stalls."""
        self.longest_seconds, self._last = 0.0, perf_counter()

    def close(self) -> None:
        """Stops the timer."""
        self._timer.cancel()

    def _on_turn(self) -> None:
        now = perf_counter()
        self.longest_seconds, self._last = max(self.longest_seconds, now - self._last), now
        self._timer = self._loop.call_later(_PROBE_SECONDS, self._on_turn)


def create_gateway() -> Gateway:
    """Returns a gateway with one model, on the running loop."""
    runtime = WorkerRuntime(SystemClock(), Limits(), asyncio.get_running_loop())
    secrets = GatewaySecrets(b"bench", EngineCredentials({}, runtime.now))
    gateway = Gateway(runtime, secrets, create_request_id=lambda: "bench")
    model = Model("default", "tiny", SloTargets(), "dual-hash")
    instance = Instance("e-0/0/0", "default", "tiny", "main", "http://127.0.0.1:9")
    gateway.update_fleet(Fleet(1, 1, {model.key: model}, {model.key: (instance,)}))
    return gateway


async def least_stall(
    gateway: Gateway, read: Callable[..., object], path: str, body: bytes, repeats: int, probe: StallProbe
) -> float:
    """Returns the longest stall of the repeat with the shortest one, in seconds."""
    stalls = []
    request = HttpRequest(RequestHead("POST", path, [], 11, len(body), True, False), body, "bench", 0.0, 0.0)
    for _ in range(repeats):
        await asyncio.sleep(0.02)
        probe.reset()
        loop, models = gateway.runtime.loop, VisibleModels(gateway.stack.routers.fleet)
        await loop.run_in_executor(gateway._large_bodies.thread, read, request, models, "bench")
        await asyncio.sleep(2 * _PROBE_SECONDS)  # a stall at the end is seen with the next turn
        stalls.append(probe.longest_seconds)
    return min(stalls)


async def least_idle_stall(gateway: Gateway, repeats: int, probe: StallProbe) -> float:
    """Returns the same while a thread does nothing for a while."""
    return await least_stall(gateway, lambda *_: sleep(_IDLE_SECONDS), CHAT_PATH, b"", repeats, probe)


async def measure(seed: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Returns the seconds of stall by body: with the process, and in a thread."""
    gateway, probe = create_gateway(), StallProbe()
    parser = gateway._request_parser
    idle_seconds = await least_idle_stall(gateway, repeats, probe)
    found = {IDLE: (idle_seconds, idle_seconds)}
    for name, (path, body) in make_bodies(seed).items():
        in_process = await least_stall(gateway, parser.parse_large, path, body, repeats, probe)
        found[name] = in_process, await least_stall(gateway, parser.parse, path, body, repeats, probe)
    probe.close()
    gateway.close()
    return found


def rows(found: Mapping[str, tuple[float, float]], goals: Goals) -> Iterator[ResultRow]:
    """Yields the rows of the result."""
    for name, (in_process, in_thread) in found.items():
        yield goals.ratio(f"longest stall: {name}", "ms", in_process * 1e3, "in a thread", in_thread * 1e3)
    worst_in_process, worst_in_thread = (max(stalls) for stalls in zip(*found.values(), strict=True))
    yield goals.ratio(_WORST, "ms", worst_in_process * 1e3, "in a thread", worst_in_thread * 1e3)
    bound = found[IDLE][0] + _MAX_STALL_SECONDS
    over = sum(in_process > bound for in_process, _ in found.values())
    yield goals.value(_OVER, "bodies", float(over))


def main(arguments: Sequence[str]) -> int:
    """Measures, prints the table and writes it."""
    given = parse_options("large-bodies", __doc__, arguments, seed=1, repeats=5)
    process_tuning.tune_malloc()  # as a worker does
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        found = runner.run(measure(given.seed, given.repeats))
    write_results("large-bodies", rows(found, load_goals("large-bodies")), seed=given.seed, file=given.out)
    return 0
