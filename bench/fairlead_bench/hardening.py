"""Attacks on the control plane and the gateway, and what each of them costs others.

Each attack is run, and its cost is compared with a goal. The seed draws the bodies; everything else
is fixed. The load average of the machine is in the result: other processes lengthen times, and
change no count.

Stalls of a worker's event loop by the largest bodies of every kind.

The bodies of the benchmark of large bodies, and more: many keys, many texts, nesting at the limit
and beyond it. Some are refused, which must not stall the loop either.

Control requests whose answer is a nested gzip bomb: memory and seconds of each read.

The reads are those of the product: the gateway's scrape of an engine, the indexer's query, and the
autoscaler's two. The least of several repeats counts for the time, since other processes of the
machine add to it and never shorten it. For the memory, the largest of all repeats counts.

Ejections of healthy engines that one caller, or the gateway itself, causes.

The gateway and its engines run in this process, over real sockets.

Shares that one caller or one namespace cannot take from another: pure code in simulated time.

Slices of an indexer's work while one engine is hostile.

Each attack is a batch of KV events that took up to several seconds at once. It is applied in
slices, as the indexer does it. The longest slice counts, in CPU seconds of the thread: other
processes of the machine lengthen a slice, and are no part of it. Of several repeats the least
counts.

Clients that send requests and never read the answers, before a gateway with its default limits.

The answers to each client are some 200 KB: more than the kernel takes for a connection. Those to
all clients are more than a worker may have unsent. The clients are sockets of this process. The
gateway is a process of its own, so that its memory is measured apart.

The worker closes a connection 30 s after it has begun to answer. So the time until the last one is
closed also has the time in which the worker answers, some seconds where it has a processor.

The clients come twice. The second time shows whether the gateway needs more memory each time.

Fewer clients come before another gateway, and each begins a stream that never ends. The memory of
its worker is compared with that before, as soon as an idle worker has returned what was freed.
"""

import asyncio
import contextlib
import random
import re
import resource
import select
import socket
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import msgspec

from fairlead.engines.credentials import EngineCredentials
from fairlead.engines.sleep_mode import send_request
from fairlead.errors import Unavailable
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet, Instance, Model, SloTargets
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.event_loop import loop_factory
from fairlead_autoscaler.collector.gateway_scraper import fetch_page
from fairlead_bench.large_bodies import (
    CHAT_PATH,
    COMPLETION_PATH,
    IDLE,
    StallProbe,
    create_gateway,
    least_idle_stall,
    least_stall,
    make_bodies,
)
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.payloads import EventBatch, StoredEvent
from fairlead_kvstore.events.types import AcceptBatch
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_kvstore.reader.event_application import EventApplication
from fairlead_testing.engines.scripted import EngineCall, Script, event, scripted_engine, token, well_behaved
from fairlead_testing.gateway.caller_overload import CallerOverload
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, gateway_before
from fairlead_testing.http.gzip_bomb import nested_gzip_response, one_response_server
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.kube.operator_harness import build, external, model, pod
from fairlead_testing.processes import memory_bytes, no_descriptors
from fairlead_testing.pytest_hooks.coroutine_tests import run_async

_SIZE = 31 * 1024 * 1024
_TRANSFER = b'{"model":"tiny","kv_transfer_params":{"a":1},'
_MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def make_more_bodies(seed: int) -> Mapping[str, tuple[str, bytes]]:
    """Returns path and body by name."""
    draw = random.Random(seed)
    limits = Limits()
    keys = b",".join(b'"k%d":%d' % (number, draw.randrange(10)) for number in range(1_500_000))
    deep = limits.json_depth - 3
    nested = b",".join([b"[" * deep + b"]" * deep] * (limits.json_containers // deep - 2))
    numbers = b"[" + b",".join([b"-1.234567890123e-105"] * 1_400_000) + b"]"
    texts = b",".join([b'"\\ud83d\\ude00 \\n"'] * (_SIZE // 18))
    return {
        "many keys of the body": (CHAT_PATH, b'{"model":"tiny",' + keys + b"," + _MESSAGES + b"}"),
        "many keys of a field": (CHAT_PATH, b'{"model":"tiny","x":{' + keys + b"}," + _MESSAGES + b"}"),
        "nesting at the limit": (CHAT_PATH, _TRANSFER + b'"x":[' + nested + b"]," + _MESSAGES + b"}"),
        "nesting beyond the limit": (CHAT_PATH, b'{"model":"tiny","x":' + b"[" * _SIZE),
        "many numbers with exponents": (CHAT_PATH, _TRANSFER + b'"x":' + numbers + b"," + _MESSAGES + b"}"),
        "many short texts with escapes": (COMPLETION_PATH, b'{"model":"tiny","prompt":[' + texts + b"]}"),
        "only spaces": (CHAT_PATH, b'{"model":"tiny",' + b" " * _SIZE + _MESSAGES + b"}"),
        "only backslashes": (CHAT_PATH, b'{"model":"tiny","x":"' + b"\\" * _SIZE),
    }


def measure_body_stalls(seed: int, repeats: int) -> dict[str, float]:
    """Returns the seconds of stall by body, and those of an idle loop as `IDLE`."""
    process_tuning.tune_malloc()  # as a worker does
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_measure_stalls({**make_bodies(seed), **make_more_bodies(seed)}, repeats))


async def _measure_stalls(bodies: Mapping[str, tuple[str, bytes]], repeats: int) -> dict[str, float]:
    gateway, probe = create_gateway(), StallProbe()
    found = {IDLE: await least_idle_stall(gateway, repeats, probe)}

    def read(*request: Any) -> None:
        with contextlib.suppress(GatewayError):  # a busy machine may not check a body in time
            gateway._request_parser.parse_large(*request)

    for name, (path, body) in bodies.items():
        found[name] = await least_stall(gateway, read, path, body, repeats, probe)
    probe.close()
    gateway.close()
    return found


_ANSWER_LIMITS = Limits()
_WARM_UP = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@dataclass(frozen=True, slots=True)
class AnswerCost:
    """The cost of refusing one answer."""

    allocated_bytes: int
    seconds: float


async def _scrape_engine(url: str) -> str:
    instance = _instance(url)
    model = Model("default", "tiny", SloTargets(), "dual-hash")
    fleet = Fleet(1, 1, {model.key: model}, {model.key: (instance,)})
    scraper = MetricsScraper(lambda: fleet, SystemClock(), _ANSWER_LIMITS)
    await scraper.scrape_once()
    return scraper.errors.get(instance.id, "")


async def _query_engine(url: str) -> str:
    query = HttpEngineQuery(EngineCredentials({}, SystemClock().now))
    return await _refusal(query(_instance(url), "/kv_event_sources"))


async def _fetch_gateway_page(url: str) -> str:
    return await _refusal(fetch_page(f"{url}/metrics"))


async def _query_sleep_mode(url: str) -> str:
    return await _refusal(send_request("GET", f"{url}/is_sleeping", None, 5.0))


READS: Mapping[str, Callable[[str], Awaitable[str]]] = {
    "an engine's /metrics, by a gateway": _scrape_engine,
    "an engine's /kv_event_sources, by an indexer": _query_engine,
    "a gateway's /metrics, by the autoscaler": _fetch_gateway_page,
    "an engine's /is_sleeping, by the autoscaler": _query_sleep_mode,
}
"""Functions of a URL that return why the answer was refused; empty if it was not."""


def measure_control_answers(repeats: int) -> dict[str, AnswerCost]:
    """Returns the cost by read. Raises AssertionError if a read accepts the bomb."""
    bomb = nested_gzip_response()
    found = {}
    for name, read in READS.items():
        _read_once(read, _WARM_UP)  # imports and caches are not part of the cost
        seconds = min(_read_once(read, bomb)[0] for _ in range(repeats))
        allocated = []
        for _ in range(repeats):
            tracemalloc.start()
            try:
                refusal = _read_once(read, bomb)[1]
                allocated.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert "content-encoding" in refusal, f"{name}: {refusal or 'accepted'}"
        found[name] = AnswerCost(max(allocated), seconds)
    return found


def _read_once(read: Callable[[str], Awaitable[str]], response: bytes) -> tuple[float, str]:
    """Returns the seconds of a read, and why the answer was refused."""

    async def run(url: str) -> tuple[float, str]:
        started = perf_counter()
        refusal = await read(url)
        return perf_counter() - started, refusal

    with one_response_server(response) as (url, _):
        return asyncio.run(run(url))


async def _refusal(reply: Awaitable[object]) -> str:
    try:
        await reply
    except Unavailable as error:
        return error.message
    return ""


def _instance(url: str) -> Instance:
    return Instance("main-0/8000/0", "default", "tiny", "main", url, "vllm")


_ENGINES = 6
_REQUESTS = 60
_EJECTIONS = re.compile(r"^fairlead_gateway_instance_ejections_total\{[^}]*\} (\S+)$", re.MULTILINE)
_LIMITS = Limits(ejection_seconds=600.0)  # no ejection is over before the run


async def _fail_on_poison(call: EngineCall) -> None:
    if b"poison" in call.body:
        await call.respond({"error": {"message": "broken", "code": 500}}, "500 Internal Server Error")
    else:
        await well_behaved(call)


def ejections_by_poison_request() -> int:
    """Returns how many engines one caller ejects with a request that every engine fails.

    Half of the requests are the same one, the others differ.
    """
    texts = ["poison" if number % 2 else f"poison {number} " * 300 for number in range(_REQUESTS)]
    return _run(_fail_on_poison, lambda running: _send_all(running, texts, 502))


def ejections_without_descriptors() -> int:
    """Returns how many engines a gateway ejects that can open no connection to them (EMFILE)."""
    return _run(well_behaved, _send_without_descriptors)


def _run(script: Script, use: Callable[[RunningGateway], Awaitable[None]]) -> int:
    async def main() -> int:
        async with gateway_before([script] * _ENGINES, _LIMITS) as running:
            await use(running)
            return sum(_ejections(running))

    return run_async(main())


def _ejections(running: RunningGateway) -> Iterator[int]:
    """Yields the ejections of each instance since the start."""
    gateway = running.gateway
    page = gateway.telemetry.render(gateway.stack.routers.fleet, running.loads(), gateway.runtime.now()).decode()
    yield from (int(float(value)) for value in _EJECTIONS.findall(page))


async def _send_without_descriptors(running: RunningGateway) -> None:
    client = await RawConnection.connect(running.url)
    with no_descriptors():
        await _send_over(client, [f"{number} " * 300 for number in range(_REQUESTS)], 503)
    await client.close()


async def _send_all(running: RunningGateway, texts: list[str], status: int) -> None:
    client = await RawConnection.connect(running.url)
    await _send_over(client, texts, status)
    await client.close()


async def _send_over(client: RawConnection, texts: list[str], status: int) -> None:
    """Sends a chat for each text. Raises AssertionError for an answer of another status."""
    for text in texts:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
        await client.send(post_request(body, close=False))
        answer = await client.read_response()
        assert answer.status == status, answer.status


_FLOOD_RATE = 5.0
_STEADY_RATE = 0.3
_SIMULATED_SECONDS = 600.0
_POOLS, _ENDPOINTS_OF_A_POOL = 16, 256
_OTHER_NAMESPACES = 8
_PODS_OF_A_NAMESPACE = 4
GREEDY_ENDPOINTS = _POOLS * _ENDPOINTS_OF_A_POOL


def lost_share_of_steady_caller() -> float:
    """Returns the share of requests that a caller loses who sends less than its share of an engine.

    Another caller sends five times as much as the engine can serve.
    """
    overload = CallerOverload(Limits(), {"flood": _FLOOD_RATE, "steady": _STEADY_RATE})
    overload.run(_SIMULATED_SECONDS)
    return overload.lost_share("steady")


def instances_lost_to_endpoints() -> int:
    """Returns how many instances other namespaces lose to one manifest with 4,096 endpoints.

    The manifest was there first, and took all instances of the fleet. Then the others come.
    """
    pools = [
        {
            "name": f"p{pool}",
            "endpoints": [{"url": f"http://10.1.{pool}.{number}:80"} for number in range(_ENDPOINTS_OF_A_POOL)],
        }
        for pool in range(_POOLS)
    ]
    greedy = external(*pools, name="greedy", namespace="b", created="2025-01-01T00:00:00Z")
    taken = build([greedy]).fleet
    assert len(taken.instances["b/greedy"]) == GREEDY_ENDPOINTS == Limits().instances, "the fleet is not full"
    namespaces = [f"team-{number}" for number in range(_OTHER_NAMESPACES)]
    pods = [
        pod(f"{namespace}-{number}", namespace=namespace)
        for namespace in namespaces
        for number in range(_PODS_OF_A_NAMESPACE)
    ]
    others = [model(namespace=namespace) for namespace in namespaces]
    fleet = build([greedy, *others], *pods, previous=taken).fleet
    served = sum(len(fleet.instances[f"{namespace}/tiny"]) for namespace in namespaces)
    return len(pods) - served


BLOCKS = 200_000
"""The blocks that the engine has before it attacks, where that matters."""
_encode = msgspec.msgpack.encode
_SPARE_BYTES = 64


def measure_index_turns(repeats: int) -> dict[str, float]:
    """Returns the longest slice in CPU seconds, by attack."""
    process_tuning.relax_gc()  # as the indexer does
    limits = Limits(kv_blocks_per_instance=BLOCKS)
    return {name: min(_longest_slice(attack, limits) for _ in range(repeats)) for name, attack in ATTACKS.items()}


def _longest_slice(attack: Callable[[BlockStore, Limits], bytes], limits: Limits) -> float:
    store = BlockStore(limits=limits)
    store.attach("i", "default/tiny", 0.0)
    application = EventApplication(store, "i", limits)
    application.add([AcceptBatch(0, attack(store, limits))])
    longest = 0.0
    while application.is_busy:
        begun = time.thread_time()
        application.run(100.0, limits.kv_slice_bytes)
        longest = max(longest, time.thread_time() - begun)
    return longest


def _fill(store: BlockStore, **more: Any) -> None:
    """Stores one chain of ``BLOCKS`` blocks, less a few."""
    step = 20_000
    for start in range(0, BLOCKS - step, step):
        hashes: list[int | bytes] = list(range(start + 1, start + step + 1))
        _apply(store, StoredEvent(hashes, start or None, [start] * step, 1, **more))


def _apply(store: BlockStore, *events: StoredEvent) -> None:
    store.apply_at_once("i", EventBatch(0.0, events), 0.0)


def _batch(*events: Any) -> bytes:
    return bytes(_encode([1.0, events, 0]))


def _tiny_events(store: BlockStore, limits: Limits) -> bytes:
    events, size, number = list[Any](), 0, 0
    while size < limits.kv_events_bytes - _SPARE_BYTES - 32 and number < limits.kv_events_in_batch:
        number += 1
        events.append(["BlockStored", [number], number - 1 or None, [1], 1])
        size += len(_encode(events[-1]))
    return _batch(*events)


def _clears(store: BlockStore, limits: Limits) -> bytes:
    return _batch(*[["AllBlocksCleared"]] * (limits.kv_events_bytes // 20))


def _nested_event(store: BlockStore, limits: Limits) -> bytes:
    count = limits.kv_events_bytes - 256
    event = b"\x83\xa4type\xacBlockRemoved\xacblock_hashes\x91\x01\xa8locality\xdd" + struct.pack(">I", count)
    return b"\x93\xcb" + struct.pack(">d", 1.0) + b"\x91" + event + b"\x90" * count + b"\x00"


def _large_event(store: BlockStore, limits: Limits) -> bytes:
    blocks = limits.kv_event_blocks
    return _batch(["BlockStored", list(range(1, blocks + 1)), None, [1] * blocks, 1])


def _evictions(store: BlockStore, limits: Limits) -> bytes:
    _fill(store)
    hashes = list(range(10**9, 10**9 + 100_000))
    return _batch(["BlockStored", hashes, None, [1] * len(hashes), 1])


def _orphans(store: BlockStore, limits: Limits) -> bytes:
    waiting = limits.kv_orphans_per_instance
    children = [StoredEvent([number], 1, [number], 1) for number in range(2, waiting + 2)]
    _apply(store, *children)
    return _batch(["BlockStored", [1], None, [1], 1])


def _long_chain(store: BlockStore, limits: Limits) -> bytes:
    _fill(store)
    return _batch(["BlockStored", [10**9], BLOCKS - 20_000, [1], 1])


def _reload(store: BlockStore, limits: Limits) -> bytes:
    _fill(store, lora_id=1, lora_name="a")
    return _batch(["BlockStored", [10**9], None, [1], 1, 2, "GPU", "a"])


def _clear_of_a_tier(store: BlockStore, limits: Limits) -> bytes:
    _fill(store, medium="disk")
    return _batch(["AllBlocksCleared", "disk"])


ATTACKS: Mapping[str, Callable[[BlockStore, Limits], bytes]] = {
    "2 MiB of tiny events": _tiny_events,
    "2 MiB of clears": _clears,
    "one event with two million nested arrays": _nested_event,
    "one event with 131,072 blocks": _large_event,
    "evictions of 100,000 blocks": _evictions,
    "32,768 blocks with one parent": _orphans,
    "a chain of 180,000 blocks": _long_chain,
    "reload of an adapter with 180,000 blocks": _reload,
    "clear of a tier with 180,000 blocks": _clear_of_a_tier,
}
"""Functions of a block store, which they prepare, that return the payload of a batch."""


CLIENTS = 5_000
STREAM_CLIENTS = 200
_MODELS = 500
_LISTS = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 5
_STREAM = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
_EVENTS_AT_ONCE = 10
_RELEASE_SECONDS = 10.0
_RECEIVE_BUFFER_BYTES = 4_096
_CONNECT_SECONDS = 30.0
_MAX_WAIT_SECONDS = 120.0
_OWN_DESCRIPTORS = 512
_TIMES = 2


@dataclass(frozen=True, slots=True)
class UnreadResult:
    """The result of a run.

    clients: the connections that were opened each time.
    closed_seconds: from the last connect until the last connection was closed; None if some were
        still open after two minutes.
    still_open: connections that were open 60 seconds after the last connect.
    peak_growth_bytes: the largest memory of the worker, beyond that before the first connect.
    second_growth_bytes: the growth of that by the second time.
    kept_share: the memory of the worker ten seconds after the last time, by that before.
    """

    clients: int
    closed_seconds: float | None
    still_open: int
    peak_growth_bytes: int
    second_growth_bytes: int
    kept_share: float


def measure_unread(clients: int = CLIENTS, limit_seconds: float = 60.0) -> UnreadResult:
    """Runs a gateway and the clients; fewer of them if the system allows too few open files."""
    process_tuning.raise_open_file_limit()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        clients = min(clients, soft - _OWN_DESCRIPTORS)
    return asyncio.run(_measure_unread(_fleet(), _LISTS, clients, limit_seconds))


def measure_streams(clients: int = STREAM_CLIENTS, limit_seconds: float = 60.0) -> UnreadResult:
    """Runs a gateway, an engine and the clients of streams that never end."""
    return asyncio.run(_measure_streams(clients, limit_seconds))


async def _measure_streams(clients: int, limit_seconds: float) -> UnreadResult:
    async with scripted_engine(_never_ending) as engine:
        request = post_request(_STREAM, close=False)
        return await _measure_unread(fleet_of([engine.url]), request, clients, limit_seconds)


async def _never_ending(call: EngineCall) -> None:
    """Sends events until the gateway takes no more."""
    await call.start_stream()
    events = event(token("a few words of an answer")) * _EVENTS_AT_ONCE
    while True:
        await call.chunk(events)
        await asyncio.sleep(0)


async def _measure_unread(fleet: Fleet, requests: bytes, clients: int, limit_seconds: float) -> UnreadResult:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.yaml"
        write_fleet_file(path, fleet)
        async with gateway_process(path, "--workers", "1") as gateway:
            (worker,) = gateway.worker_pids()
            host, port = urlsplit(gateway.url).hostname or "", urlsplit(gateway.url).port or 0
            peaks = [memory_bytes(worker, "VmRSS")]
            closed: list[float | None] = []
            still_open = 0
            for _ in range(_TIMES):
                seconds, opened = await asyncio.to_thread(_run_clients, (host, port), requests, clients, limit_seconds)
                closed.append(seconds)
                still_open = max(still_open, opened)
                peaks.append(memory_bytes(worker, "VmHWM"))
            await asyncio.sleep(_RELEASE_SECONDS)
            kept = memory_bytes(worker, "VmRSS")
    known = [seconds for seconds in closed if seconds is not None]
    before, first, second = peaks
    closed_seconds = max(known) if len(known) == _TIMES else None
    return UnreadResult(clients, closed_seconds, still_open, first - before, second - first, kept / before)


def _run_clients(
    address: tuple[str, int], requests: bytes, clients: int, limit_seconds: float
) -> tuple[float | None, int]:
    """Returns when the last connection was closed, and how many were open after the limit."""
    with contextlib.ExitStack() as stack, select.epoll() as events:
        left: set[int] = set()
        for connection in _connect(address, requests, clients, stack):
            events.register(connection, select.EPOLLRDHUP)  # a reset is reported in any case
            left.add(connection.fileno())
        started = time.monotonic()
        still_open = clients
        while left and (seconds := time.monotonic() - started) < _MAX_WAIT_SECONDS:
            for descriptor, _ in events.poll(0.2):
                events.unregister(descriptor)
                left.discard(descriptor)
            if seconds < limit_seconds:
                still_open = len(left)
        return None if left else time.monotonic() - started, still_open


def _connect(
    address: tuple[str, int], requests: bytes, clients: int, stack: contextlib.ExitStack
) -> Iterator[socket.socket]:
    """Yields connections that have sent their requests."""
    for _ in range(clients):
        connection = stack.enter_context(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(address)
        connection.sendall(requests)
        yield connection


def _fleet() -> Fleet:
    """Returns many models, so that their list is long. Their instances are never asked."""
    models = [Model("default", f"model-{number:04}", SloTargets(), "dual-hash") for number in range(_MODELS)]
    instances = {
        model.key: (Instance(f"{model.name}/0/0", "default", model.name, "main", "http://127.0.0.1:9"),)
        for model in models
    }
    return Fleet(1, 1, {model.key: model for model in models}, instances)


_MEGABYTE = 1e6
_ANSWER_MEMORY = "nested gzip bomb as a control answer: memory, at most"
_ANSWER_SECONDS = "nested gzip bomb as a control answer: time of a read, at most"
_UNREAD_OPEN = "clients that never read: connections open after 60 s"
_UNREAD_PEAK = "clients that never read: growth of the worker's memory, at most"
_UNREAD_SECOND = "clients that never read: further growth of the worker's memory, the second time"
_STREAMS_OPEN = "200 streams that clients never read: connections open after 60 s"
_STREAMS_KEPT = "200 streams that clients never read: memory of the worker afterwards ÷ before"
_FLOOD = "a flood: lost requests of a caller below its share"
_ENDPOINTS = "4,096 endpoints of one manifest: instances that other namespaces lose"
_POISON = "a poison request of one caller: ejected engines"
_DESCRIPTORS = "a gateway without descriptors: ejected engines"
_UNITS = {_FLOOD: "share", _ENDPOINTS: "instances"}
_STALL = "bodies of 31 MiB: stall of a worker's loop beyond that of an idle one, at most"
_TURN = "KV events of a hostile engine: CPU time of a slice of the indexer, at most"


def answer_rows(costs: Mapping[str, AnswerCost], goals: Goals) -> Iterator[ResultRow]:
    """Yields the rows of control answers."""
    for name, cost in costs.items():
        yield goals.value(f"{name}: memory", "MB", cost.allocated_bytes / _MEGABYTE)
        yield goals.value(f"{name}: time", "s", cost.seconds)
    largest = max(cost.allocated_bytes for cost in costs.values()) / _MEGABYTE
    yield goals.value(_ANSWER_MEMORY, "MB", largest)
    yield goals.value(_ANSWER_SECONDS, "s", max(cost.seconds for cost in costs.values()))


def unread_rows(result: UnreadResult, goals: Goals) -> Iterator[ResultRow]:
    """Yields the rows of clients that never read."""
    yield goals.value("clients that never read: connections", "connections", float(result.clients))
    yield goals.value("clients that never read: until the last was closed", "s", result.closed_seconds)
    yield goals.value(_UNREAD_OPEN, "connections", float(result.still_open))
    yield goals.value(_UNREAD_PEAK, "MB", result.peak_growth_bytes / _MEGABYTE)
    yield goals.value(_UNREAD_SECOND, "MB", result.second_growth_bytes / _MEGABYTE)
    yield goals.value("clients that never read: memory of the worker afterwards ÷ before", "×", result.kept_share)


def stream_rows(result: UnreadResult, goals: Goals) -> Iterator[ResultRow]:
    """Yields the rows of clients that never read their streams."""
    yield goals.value("200 streams that clients never read: until the last was closed", "s", result.closed_seconds)
    yield goals.value(_STREAMS_OPEN, "connections", float(result.still_open))
    peak = result.peak_growth_bytes / _MEGABYTE
    yield goals.value("200 streams that clients never read: growth of the worker's memory", "MB", peak)
    yield goals.value(_STREAMS_KEPT, "×", result.kept_share)


def count_rows(counts: Mapping[str, float], goals: Goals) -> Iterator[ResultRow]:
    """Yields the rows of shares and ejections."""
    for name, count in counts.items():
        yield goals.value(name, _UNITS.get(name, "engines"), count)


def stall_rows(stalls: Mapping[str, float], goals: Goals) -> Iterator[ResultRow]:
    """Yields the rows of large bodies."""
    for name, seconds in stalls.items():
        yield goals.value(f"longest stall: {name}", "s", seconds)
    yield goals.value(_STALL, "s", max(stalls.values()) - stalls[IDLE])


def turn_rows(turns: Mapping[str, float], goals: Goals) -> Iterator[ResultRow]:
    """Yields the rows of hostile KV events."""
    for name, seconds in turns.items():
        yield goals.value(f"longest slice: {name}", "s", seconds)
    yield goals.value(_TURN, "s", max(turns.values()))


def main(arguments: Sequence[str]) -> int:
    """Runs the attacks, prints the table and writes it; returns 1 if a goal is missed."""
    given = parse_options(
        "hardening", __doc__, arguments, seed=1, repeats=5, clients=(CLIENTS, "clients that never read")
    )
    goals = load_goals("hardening")
    counts: dict[str, float] = {
        _FLOOD: lost_share_of_steady_caller(),
        _ENDPOINTS: instances_lost_to_endpoints(),
        _POISON: ejections_by_poison_request(),
        _DESCRIPTORS: ejections_without_descriptors(),
    }
    rows = [
        *answer_rows(measure_control_answers(given.repeats), goals),
        *unread_rows(measure_unread(given.clients), goals),
        *stream_rows(measure_streams(), goals),
        *count_rows(counts, goals),
        *stall_rows(measure_body_stalls(given.seed, given.repeats), goals),
        *turn_rows(measure_index_turns(min(2, given.repeats)), goals),
    ]
    return write_results("hardening", rows, seed=given.seed, file=given.out)
