"""Local mode over two real engines, of which one is stopped in its core: its server answers
``/health`` with 200 and sends no token.

Streams run all the time. Those of the other engine go on. Those of the stopped one move to it
within the stall timeout, and ``fairlead up`` replaces the stopped engine.
"""

import asyncio
import itertools
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.kube.workloads.manifests import resource
from e2e.vllm.client import EngineAnswer, TextPrompt, openai_client, send_prompt
from e2e.vllm.engine.engine_processes import CONTEXT_TOKENS, START_SECONDS, EngineStage, fetch
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead.limits import Limits
from fairlead_gateway.resilience.worker.engine_progress import hang_seconds
from fairlead_testing.local_stack import LocalStack
from fairlead_testing.processes import descendants
from fairlead_testing.waiting import wait_until

_MODEL = "tiny"
_CLASS = "this-machine"
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
        with self._engines() as engines:
            await self._report.check("two engines serve", lambda: self._first_answers(engines))
            await self._report.check("SIGSTOP of the core of one engine", lambda: self._stop_core(engines))

    async def _first_answers(self, engines: "_Engines") -> Numbers:
        async with openai_client(engines.stack.url) as client:
            answers = [await send_prompt(client, _prompt(number)) for number in range(8)]
        require(all(answer.ended for answer in answers), "an answer is not whole", _failures(answers))
        return {"cores": len(engines.cores())}

    async def _stop_core(self, engines: "_Engines") -> Numbers:
        """Stops the core that computes, while streams run, until the engine is replaced."""
        cores = engines.cores()
        traffic = _Traffic(engines.stack.url)
        clients = [asyncio.create_task(traffic.run()) for _ in range(_CLIENTS)]
        try:
            await wait_until(lambda: len(traffic.answers) >= 4 * _CLIENTS)
            (instance, stopped), (_, kept) = sorted(cores.items())
            os.kill(stopped, signal.SIGSTOP)
            began = time.monotonic()
            health = fetch(f"{engines.urls()[instance]}/health") == b""
            restart = f"{instance} hangs and is restarted"
            await wait_until(lambda: bool(engines.lines(restart)), _REPLACED_SECONDS)
            told = round(time.monotonic() - began, 1)
            await wait_until(lambda: engines.has_replaced(instance, stopped), _REPLACED_SECONDS, _POLL_SECONDS)
            numbers: Numbers = {"restart_seconds": told, "serves_again_seconds": round(time.monotonic() - began, 1)}
        finally:
            traffic.is_over = True
            await asyncio.gather(*clients)
        limits = Limits()
        slowest = max(answer.seconds for answer in traffic.answers)
        pauses = [pause for answer in traffic.answers for pause in answer.pauses]
        usual = statistics.median(pauses)
        allowed = hang_seconds(usual, 0.0, limits.stream_hang_seconds)
        numbers |= {
            "reason": engines.lines(restart)[0],
            "requests": len(traffic.answers),
            "slowest_seconds": round(slowest, 1),
            "usual_pause_seconds": round(usual, 3),
            "longest_pause_seconds": round(max(pauses), 1),
            "stall_seconds": limits.first_token_min_seconds,
            **_failures(traffic.answers),
        }
        require(health, "the stopped engine's health check fails, so nothing was shown", numbers)
        require(not numbers["failures"], "requests failed", numbers)
        require(slowest < 2.0 * limits.first_token_min_seconds, "a request did not move on in time", numbers)
        require(max(pauses) <= allowed, "a stream did not leave the stopped core in time", numbers)
        require(engines.cores().get(_other(cores, instance)) == kept, "the other engine was replaced too", numbers)
        require(len(engines.lines("hangs and is restarted")) == 1, "more than one restart", numbers)
        return numbers

    @contextmanager
    def _engines(self) -> Iterator["_Engines"]:
        installed, folder = self._stage.installed, self._stage.folder
        programs = f"{installed.engine_python.parent}{os.pathsep}{os.environ['PATH']}"
        manifest = "\n---\n".join(json.dumps(manifest) for manifest in _manifests(installed.model))
        arguments = ("--real", "--plain", "--logs", str(folder))
        with LocalStack(folder, *arguments, manifest=manifest, environment={"PATH": programs}) as stack:
            engines = _Engines(stack.wait_ready(START_SECONDS))
            try:
                yield engines
            finally:
                for core in engines.core_processes():
                    os.kill(core, signal.SIGCONT)


@dataclass(slots=True)
class _Engines:
    """The engines of a running ``fairlead up``."""

    stack: LocalStack

    def urls(self) -> dict[str, str]:
        return {instance["id"].partition("/")[0]: instance["url"] for instance in self._instances()}

    def has_replaced(self, instance: str, core: int) -> bool:
        is_ready = any(one["id"].startswith(f"{instance}/") and one["state"] == "Ready" for one in self._instances())
        return is_ready and self.cores().get(instance, core) != core

    def core_processes(self) -> set[int]:
        return {pid for pid, command in self.stack.children().items() if command.startswith(_CORE)}

    def cores(self) -> dict[str, int]:
        """Returns the process ids of the engines' cores by instance."""
        instances = {f"--port {url.rpartition(':')[2]} ": name for name, url in self.urls().items()}
        cores, found = self.core_processes(), {}
        for pid, command in self.stack.children().items():
            names = [name for option, name in instances.items() if option in command]
            for core in cores & descendants(pid) if names else ():
                found[names[0]] = core
        return found

    def lines(self, text: str) -> list[str]:
        return [line.strip() for line in self.stack.lines if text in line]

    def _instances(self) -> list[dict[str, Any]]:
        fleet = json.loads(fetch(f"{self.stack.manage}/api/fleet"))
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


def _manifests(model: Path) -> list[dict[str, Any]]:
    """Returns a class with the tiny model's speed, and a ModelDeployment of two small replicas."""
    arguments = ["--dtype=bfloat16", "--enforce-eager", f"--max-model-len={CONTEXT_TOKENS}"]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    engine = {
        "type": "VLLM",
        "args": [*arguments, "--block-size=32", "--num-gpu-blocks-override=1024"],
        "env": [{"name": name, "value": value} for name, value in settings.items()],
    }
    pools = [{"acceleratorClassName": _CLASS, "minReplicas": 2}]
    return [
        resource("AcceleratorClass", _CLASS, profile={"preset": "tiny-cpu"}),
        resource("ModelDeployment", _MODEL, model={"uri": f"file://{model}"}, engine=engine, pools=pools),
    ]


def _prompt(number: int) -> TextPrompt:
    messages = [{"role": "user", "content": f"Why is {number} a number? " * 8}]
    body = {"model": _MODEL, "messages": messages, "max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True}
    return TextPrompt(0, "chat", "/v1/chat/completions", body).as_stream()


def _failures(answers: list[EngineAnswer]) -> Numbers:
    failed = [answer for answer in answers if not answer.ended]
    return {"failures": len(failed), "first_failures": [f"{one.status} {one.error}" for one in failed[:3]]}


def _other(cores: Mapping[str, int], instance: str) -> str:
    return next(name for name in cores if name != instance)
