"""Local mode over two real engines, of which one is stopped in its core: its server answers
``/health`` with 200 and sends no token.

Streams run all the time. Those of the other engine go on. Those of the stopped one move to it
within the stall timeout, and ``fairlead up`` replaces the stopped engine.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.vllm.client import EngineAnswer, openai_client, send_prompt
from e2e.vllm.engine.engine_processes import CONTEXT_TOKENS, START_SECONDS, EngineStage, fetch
from e2e.vllm.report import Numbers, VllmReport, require
from e2e.vllm.text_prompts import TextPrompt
from fairlead.limits import Limits

_MODEL = "tiny"
_CLIENTS = 3
_PAUSE_SECONDS = 0.1
_TOKENS = 48
_REPLACED_SECONDS = 300.0
_POLL_SECONDS = 0.5
_CORE = "VLLM::EngineCore"


class HungCore:
    """Two engines of ``fairlead up``, clients, and one SIGSTOP."""

    def __init__(self, stage: EngineStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Everything, in order; the engines are gone afterwards."""
        async with self._stack() as stack:
            await self._report.check("two engines serve", lambda: self._first_answers(stack))
            await self._report.check("SIGSTOP of the core of one engine", lambda: self._stop_core(stack))

    async def _first_answers(self, stack: "_Stack") -> Numbers:
        async with openai_client(stack.url) as client:
            answers = [await send_prompt(client, _prompt(number)) for number in range(8)]
        require(all(answer.ended for answer in answers), "an answer is not whole", _failures(answers))
        return {"cores": len(stack.cores())}

    async def _stop_core(self, stack: "_Stack") -> Numbers:
        """Stops the core that computes, while streams run, until the engine is replaced."""
        cores = stack.cores()
        traffic = _Traffic(stack.url)
        clients = [asyncio.create_task(traffic.run()) for _ in range(_CLIENTS)]
        try:
            await _eventually("too few answers", lambda: len(traffic.answers) >= 4 * _CLIENTS)
            (instance, stopped), (_, kept) = sorted(cores.items())
            os.kill(stopped, signal.SIGSTOP)
            began = time.monotonic()
            health = fetch(f"{stack.engines()[instance]}/health") == b""
            event = await stack.wait_for_line(f"{instance} hangs and is restarted")
            told = round(time.monotonic() - began, 1)
            await _eventually("the engine is not replaced", lambda: stack.has_replaced(instance, stopped))
            numbers: Numbers = {"restart_seconds": told, "serves_again_seconds": round(time.monotonic() - began, 1)}
        finally:
            traffic.is_over = True
            await asyncio.gather(*clients)
        limits = Limits()
        slowest = max(answer.seconds for answer in traffic.answers)
        numbers |= {
            "reason": event,
            "requests": len(traffic.answers),
            "slowest_seconds": round(slowest, 1),
            "stall_seconds": limits.first_token_min_seconds,
            **_failures(traffic.answers),
        }
        require(health, "the stopped engine's health check fails, so nothing was shown", numbers)
        require(not numbers["failures"], "requests failed", numbers)
        require(slowest < 2.0 * limits.first_token_min_seconds, "a request did not move on in time", numbers)
        require(stack.cores().get(_other(cores, instance)) == kept, "the other engine was replaced too", numbers)
        require(stack.count_lines("hangs and is restarted") == 1, "more than one restart", numbers)
        return numbers

    @asynccontextmanager
    async def _stack(self) -> AsyncIterator["_Stack"]:
        folder = self._stage.folder
        manifest, output = folder / "tiny.yaml", folder / "up.log"
        manifest.write_text(json.dumps(_manifest(self._stage.installed.model)))
        programs = f"{self._stage.installed.engine_python.parent}{os.pathsep}{os.environ['PATH']}"
        command = ["-m", "fairlead_cli", "up", str(manifest), "--real", "--plain", "--logs", str(folder)]
        with output.open("w") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *(*command, "--listen", "127.0.0.1:0", "--manage", "127.0.0.1:0"),
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "PATH": programs, "XDG_RUNTIME_DIR": str(folder)},
            )
        try:
            stack = _Stack(process.pid, output)
            ready = await stack.wait_for_line("ready ", START_SECONDS)
            stack.url, stack.manage = ready.split()[1::2]
            yield stack
        finally:
            for core in _Stack(process.pid, output).cores().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(core, signal.SIGCONT)
            process.terminate()
            await process.wait()


@dataclass(slots=True)
class _Stack:
    """A running ``fairlead up``: its process, its output, its addresses."""

    pid: int
    output: Path
    url: str = ""
    manage: str = ""

    def engines(self) -> dict[str, str]:
        """Returns the URLs of the engines by instance."""
        return {one["id"].partition("/")[0]: one["url"] for one in self._instances()}

    def has_replaced(self, instance: str, core: int) -> bool:
        """Whether an instance has another core than this one, and the gateway may use it."""
        is_ready = any(one["id"].startswith(f"{instance}/") and one["state"] == "Ready" for one in self._instances())
        return is_ready and self.cores().get(instance, core) != core

    def cores(self) -> dict[str, int]:
        """Returns the process ids of the engines' cores by instance."""
        ports = {url.rpartition(":")[2]: name for name, url in self.engines().items()} if self.manage else {}
        processes = _processes()
        found = {}
        for pid, (parent, words) in processes.items():
            if words.startswith(_CORE) and self.pid in _ancestors(pid, processes):
                server = processes[parent][1].split()
                port = server[server.index("--port") + 1] if "--port" in server else ""
                found[ports.get(port, port)] = pid
        return found

    async def wait_for_line(self, text: str, seconds: float = _REPLACED_SECONDS) -> str:
        """Returns the first line of the output that contains a text."""
        await _eventually(f"no line with {text!r}", lambda: self.count_lines(text) > 0, seconds)
        return next(line for line in self.output.read_text().splitlines() if text in line)

    def count_lines(self, text: str) -> int:
        """Returns how many lines of the output contain a text."""
        return sum(text in line for line in self.output.read_text().splitlines())

    def _instances(self) -> list[dict[str, Any]]:
        fleet = json.loads(fetch(f"{self.manage}/api/fleet"))
        return [instance for model in fleet["models"] for instance in model["instances"]]


@dataclass(slots=True)
class _Traffic:
    """Streams one after another, each with a prompt of its own."""

    url: str
    answers: list[EngineAnswer] = field(default_factory=list)
    is_over: bool = False
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(100))

    async def run(self) -> None:
        """Sends until ``is_over``."""
        async with openai_client(self.url) as client:
            while not self.is_over:
                self.answers.append(await send_prompt(client, _prompt(next(self.numbers))))
                await asyncio.sleep(_PAUSE_SECONDS)


def _manifest(model: Path) -> dict[str, Any]:
    """Returns a ModelDeployment of two replicas, small and slow enough for two processors."""
    arguments = ["--dtype=bfloat16", "--enforce-eager", f"--max-model-len={CONTEXT_TOKENS}"]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    return {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": _MODEL},
        "spec": {
            "model": {"uri": f"file://{model}"},
            "engine": {
                "type": "VLLM",
                "args": [*arguments, "--block-size=32", "--num-gpu-blocks-override=1024"],
                "env": [{"name": name, "value": value} for name, value in settings.items()],
            },
            "pools": [{"acceleratorClassName": "tiny-cpu", "minReplicas": 2}],
        },
    }


def _prompt(number: int) -> TextPrompt:
    messages = [{"role": "user", "content": f"Why is {number} a number? " * 8}]
    body = {"model": _MODEL, "messages": messages, "max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True}
    return TextPrompt(0, "chat", "/v1/chat/completions", body).as_stream()


def _failures(answers: list[EngineAnswer]) -> Numbers:
    failed = [answer for answer in answers if not answer.ended]
    return {"failures": len(failed), "first_failures": [f"{one.status} {one.error}" for one in failed[:3]]}


def _other(cores: Mapping[str, int], instance: str) -> str:
    return next(name for name in cores if name != instance)


def _processes() -> dict[int, tuple[int, str]]:
    """Returns the parent and the command of each process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
            found[int(folder.name)] = (int((folder / "stat").read_text().rpartition(")")[2].split()[1]), words)
    return found


def _ancestors(pid: int, processes: Mapping[int, tuple[int, str]]) -> set[int]:
    found: set[int] = set()
    while pid in processes:
        pid = processes[pid][0]
        found.add(pid)
    return found


async def _eventually(why: str, holds: Callable[[], bool], seconds: float = _REPLACED_SECONDS) -> None:
    """Polls until it holds; raises CheckFailed after `seconds`."""
    began = time.monotonic()
    while not holds():
        require(time.monotonic() - began < seconds, f"{why} within {seconds:.0f} s")
        await asyncio.sleep(_POLL_SECONDS)
