"""The fleet, the engines, the strict client of chats and the report of all parts of the soak.

The client counts by name whatever is not a whole and right answer. An engine is a fork of one
process that has everything loaded: a start takes milliseconds in place of a second of CPU.

The report has the machine, the seed, the amounts, and a verdict for each goal. In full
(``make soak``) it is bench/results/soak.json, else out/soak.json.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, ModelRouting, StreamResume
from fairlead_testing.forks.process import ForkingPopen
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request
from fairlead_testing.processes import unused_ports
from fairlead_testing.reports import ReportLine, commit, lines_as_json, machine

TIMEOUT_SECONDS = 30.0

READY_SECONDS = 60.0

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("FAIRLEAD_SOAK_SEED", "7"))
FULL = os.environ.get("FAIRLEAD_SOAK", "") == "full"
REPORT = ROOT / "bench" / "results" / "soak.json" if FULL else ROOT / "out" / "soak.json"


def write_fleet(path: Path, urls: Sequence[str], model: str = "tiny", *, resumes: bool = True) -> None:
    """One model with an instance for each URL, all ready."""
    resume = StreamResume.AUTO if resumes else StreamResume.NEVER
    served = Model("default", model, routing=ModelRouting(resume=resume))
    instances = tuple(
        Instance(f"e-{number}/{number}/0", "default", model, "main", url, state=InstanceState.READY)
        for number, url in enumerate(urls)
    )
    write_fleet_file(path, Fleet(1, 1, {served.key: served}, {served.key: instances}))


def chat_body(number: int, *, stream: bool, tokens: int, greedy: bool, topics: int = 40) -> dict[str, Any]:
    """Returns one of ``topics`` conversations, answered with exactly ``tokens`` tokens."""
    text = f"conversation {number % topics} " * 60
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0 if greedy else 1,
        "user": f"user-{number}",
    }
    return body | ({"stream": True} if stream else {})


def check_answer(answer: RawResponse, tokens: int) -> tuple[str, str]:
    """Returns a client's verdict on an answer to a chat, and its text."""
    if answer.status != 200:
        return f"status {answer.status} {json.loads(answer.body)['error']['code']}", ""
    if answer.fields.get("content-type", "").startswith("application/json"):
        choice = answer.json["choices"][0]
        whole = answer.json["usage"]["completion_tokens"] == tokens
        return "complete" if whole else "looks complete and is not", choice["message"]["content"]
    events = answer.events
    texts = [text for event in events if event != "[DONE]" for text in _texts(event)]
    if events[-1:] == ["[DONE]"]:
        return "complete" if len(texts) == tokens else "looks complete and is not", "".join(texts)
    if events and '"error"' in events[-1]:
        return "ended with an error event", ""
    return "cut silently", ""


def _texts(event: str) -> list[str]:
    choices = json.loads(event).get("choices") or []
    return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]


async def send_request(url: str, body: dict[str, Any]) -> tuple[str, str, str]:
    """Sends a chat over a new connection; returns the verdict, the text and the instance."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            connection = await RawConnection.connect(url)
            try:
                await connection.send(post_request(body))
                answer = await connection.read_response()
            finally:
                connection.writer.transport.abort()
    except TimeoutError:
        return "hangs", "", ""
    except (OSError, asyncio.IncompleteReadError) as error:
        return f"no answer: {type(error).__name__}", "", ""
    return *check_answer(answer, body["max_tokens"]), answer.fields.get("x-fairlead-instance", "")


class ForkedEngines:
    """Engines on fixed ports; ``kill`` ends one as a crash does, ``start`` starts it again."""

    def __init__(self, count: int, *arguments: str) -> None:
        self.ports = unused_ports(count)
        self.running: dict[int, ForkingPopen] = {}
        self.kills = 0
        self._arguments = arguments

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    async def start(self, number: int) -> None:
        """Returns once engine ``number`` listens."""
        listen = f"127.0.0.1:{self.ports[number]}"
        command = [sys.executable, "-m", "fairlead_sim", "engine", "--listen", listen, *self._arguments]
        process = self.running[number] = ForkingPopen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), READY_SECONDS)
        assert line.startswith(b"ready"), line

    def kill(self, number: int) -> None:
        """Sends SIGKILL."""
        with self.running.pop(number) as process:  # waits for its end
            process.kill()
        self.kills += 1


@asynccontextmanager
async def start_engines(count: int, *arguments: str) -> AsyncIterator[ForkedEngines]:
    """Runs engines until the end of the block."""
    found = ForkedEngines(count, *arguments)
    try:
        for number in range(count):
            await found.start(number)
        yield found
    finally:
        for process in found.running.values():
            with process:
                process.kill()


def write(
    part: str, begun: float, figures: Mapping[str, Any], lines: list[ReportLine], path: Path = REPORT
) -> list[ReportLine]:
    """Add one part, begun at that monotonic time, to the report; the lines that do not hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {}
    parts = report.get("parts", {}) if report.get("machine") == machine() else {}
    parts[part] = {
        "commit": commit(ROOT),
        "seed": SEED,
        "seconds": round(time.monotonic() - begun, 1),
        **figures,
        "verdict": lines_as_json(lines),
    }
    holds = all(line["holds"] for part in parts.values() for line in part["verdict"])
    text = json.dumps(
        {"machine": machine(), "full": FULL, "holds": holds, "parts": dict(sorted(parts.items()))}, indent=2
    )
    path.write_text(text + "\n")
    return [line for line in lines if not line.holds]


def scaled_count(variable: str, small: int, full: int) -> int:
    return int(os.environ.get(variable, full if FULL else small))


def scaled_number(variable: str, small: float, full: float) -> float:
    return float(os.environ.get(variable, full if FULL else small))


def is_flat(samples: list[int], share: float = 0.10, least: int = 8 << 20) -> bool:
    """Whether memory stays what it was after the first third, within a tenth or 8 MiB: until then
    bounded tables fill."""
    steady = samples[len(samples) // 3 :]
    return max(steady) - steady[0] <= max(least, share * steady[0])
