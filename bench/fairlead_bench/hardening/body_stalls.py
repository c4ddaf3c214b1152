"""Stalls of a worker's event loop by the largest bodies of every kind.

The bodies of the benchmark of large bodies, and more: many keys, many texts, nesting at the limit
and beyond it. Some are refused, which must not stall the loop either.
"""

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import Any

from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.event_loop import loop_factory
from fairlead_bench.large_bodies.benchmark import (
    CHAT_PATH,
    COMPLETION_PATH,
    IDLE,
    StallProbe,
    create_gateway,
    least_idle_stall,
    least_stall,
    make_bodies,
)
from fairlead_gateway.errors import BadRequest

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


def measure(seed: int, repeats: int) -> dict[str, float]:
    """Returns the seconds of stall by body, and those of an idle loop as `IDLE`."""
    process_tuning.tune_malloc()  # as a worker does
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_measure({**make_bodies(seed), **make_more_bodies(seed)}, repeats))


async def _measure(bodies: Mapping[str, tuple[str, bytes]], repeats: int) -> dict[str, float]:
    gateway, probe = create_gateway(), StallProbe()
    found = {IDLE: await least_idle_stall(gateway, repeats, probe)}

    def read(*request: Any) -> None:
        with contextlib.suppress(BadRequest):
            gateway._request_parser.parse_large(*request)

    for name, (path, body) in bodies.items():
        found[name] = await least_stall(gateway, read, path, body, repeats, probe)
    probe.close()
    gateway.close()
    return found
