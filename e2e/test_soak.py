"""``make soak``: engines die under load, clients leave, and garbage comes in, for a bounded while. Writes out/soak.json.

What must hold: a request that had not started is never lost, a stream that looks complete is complete, nothing that clients
send makes a 5xx, and memory does not grow with any of it.
"""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from fairlead.testing.raw_http import Answer, Connection, get, post
from fairlead.testing.stack import UpProcess

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[1]
SEED = 7
KILLS = int(os.environ.get("FAIRLEAD_SOAK_KILLS", "60"))
MALFORMED = int(os.environ.get("FAIRLEAD_SOAK_MALFORMED", "20000"))
MODEL = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {source: "hf://org/tiny"}
  pools: [{accelerator: nvidia-h100, replicas: {min: 4}}]
"""


def write(name: str, figures: dict[str, object]) -> None:
    """Add one part to the report of the soak."""
    path = ROOT / "out" / "soak.json"
    path.parent.mkdir(exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {}
    report[name] = {"seed": SEED, **figures}
    path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")


def kind_of(answer: Answer) -> str:
    """What a client makes of an answer."""
    if answer.status != 200:
        return f"status {answer.status}: {answer.error['message']}"
    events = answer.events
    done = events[-1:] == ["[DONE]"]
    tokens = sum(bool(choice["delta"].get("content")) for event in events[:-1] for choice in _choices(event))
    if done:
        return "complete" if tokens == 40 else f"looks complete with {tokens} tokens"
    return "ended with an error event" if events and '"error"' in events[-1] else "cut silently"


def _choices(event: str) -> list[dict[str, dict[str, str]]]:
    found: list[dict[str, dict[str, str]]] = json.loads(event).get("choices", [])
    return found


async def one(url: str, number: int) -> str:
    body = {
        "model": "tiny",
        "stream": True,
        "max_tokens": 40,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": f"conversation {number % 30} " * 60}],
    }
    connection = await Connection.to(url)
    try:
        await connection.send(post(body))
        return kind_of(await connection.answer())
    finally:
        await connection.close()


async def ready(manage: str) -> int:
    """Instances that the gateway calls ready."""
    connection = await Connection.to(manage)
    try:
        await connection.send(get("/api/fleet"))
        fleet = (await connection.answer()).json
    finally:
        await connection.close()
    return sum(one["state"] == "Ready" for model in fleet["models"] for one in model["instances"])


async def kill_engines(up: UpProcess, draw: random.Random) -> tuple[Counter[str], int]:
    """Open-loop traffic while engines are killed one by one; each comes back before the next but one dies."""
    tasks: list[asyncio.Task[str]] = []
    killed = 0
    while killed < KILLS:
        for _ in range(25):
            tasks.append(asyncio.create_task(one(up.url, len(tasks))))
            await asyncio.sleep(0.02)
        if await ready(up.manage) >= 3:
            engines = [pid for pid, line in up.children().items() if "fairlead_sim engine" in line]
            os.kill(draw.choice(engines), signal.SIGKILL)
            killed += 1
    return Counter(await asyncio.gather(*tasks)), killed


def test_engines_that_die_under_load_lose_no_request_that_had_not_started(tmp_path: Path) -> None:
    with UpProcess(tmp_path, manifest=MODEL) as up:
        up.ready()
        seen, killed = asyncio.run(kill_engines(up, random.Random(SEED)))
    write("engine_kills", {"kills": killed, "requests": seen.total(), "outcomes": dict(seen)})
    assert set(seen) <= {"complete", "ended with an error event"}, seen
    assert seen["complete"] > 0.8 * seen.total()


def malformed(draw: random.Random) -> bytes:
    """A request that is almost right."""
    good = bytearray(post({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}))
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(good))
        action = draw.randrange(4)
        if action == 0:
            good[at] = draw.randrange(256)
        elif action == 1:
            del good[at : at + draw.randint(1, 8)]
        elif action == 2:
            good[at:at] = draw.randbytes(draw.randint(1, 8))
        else:
            good[at:at] = draw.choice(
                [b"\r\n", b"\n", b"\0", b"Content-Length: 3\r\n", b"chunked", b'"', b"{[", b"\xff"]
            )
    return bytes(good)


async def fuzz(url: str, draw: random.Random) -> Counter[int]:
    """Malformed requests, a few connections at a time; each is closed for sending, so that nobody waits for more."""
    seen: Counter[int] = Counter()

    async def lane(share: int) -> None:
        for _ in range(share):
            connection = await Connection.to(url)
            try:
                await connection.send(malformed(draw))
                connection.writer.write_eof()
                for answer in await connection.rest():
                    seen[answer.status] += 1
            except ConnectionError:
                seen[0] += 1
            finally:
                await connection.close()

    await asyncio.gather(*(lane(MALFORMED // 8) for _ in range(8)))
    return seen


def resident(pid: int) -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def healthy(url: str) -> bool:
    connection = await Connection.to(url)
    try:
        await connection.send(get("/readyz"))
        return (await connection.answer()).status == 200
    finally:
        await connection.close()


def test_malformed_requests_make_no_5xx_and_no_growth(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    with UpProcess(tmp_path, manifest=MODEL) as up:
        up.ready()
        gateway = up.pid_of("fairlead_gateway")
        warm = asyncio.run(fuzz(up.url, draw))  # fills the bounded logs and caches
        before = resident(gateway)
        seen = asyncio.run(fuzz(up.url, draw))
        after = resident(gateway)
        assert asyncio.run(healthy(up.url))
        assert up.pid_of("fairlead_gateway") == gateway
    statuses = {str(status): count for status, count in sorted((warm + seen).items())}
    write(
        "malformed",
        {"requests": 2 * MALFORMED, "statuses": statuses, "resident_before": before, "resident_after": after},
    )
    assert not [status for status in seen if status >= 500]
    assert after <= 1.10 * before
