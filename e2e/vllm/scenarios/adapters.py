"""Two hundred LoRA adapters on three real engines of eight slots, with Zipf popularity.

An engine is killed and started again. Traffic runs all the time. Random weights make each adapter
answer the same prompt in another way. So an answer shows which adapter gave it: its text begins
like the one that the engine gave by itself.
"""

import asyncio
import itertools
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx

from e2e.vllm.client import EngineAnswer, TextPrompt, openai_client, send_prompt
from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage, GatewayProcess, fleet_of
from e2e.vllm.report import Numbers, VllmReport, require, spread
from fairlead_testing.processes import unused_port
from fairlead_testing.waiting import wait_until

ADAPTERS = 200
ENGINES = 3
SLOTS = 8
_MODEL = "tiny"
_CLIENTS = 8
_PHASE_REQUESTS = 300
"""Requests before a fault, without the engine, and after it serves again."""
_PHASE_SECONDS = 900.0
_RETURN_SECONDS = 300.0
_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 0.05
_TOKENS = 12
_SEED = 7
_MAKER = Path(__file__).parents[1] / "engine" / "tiny_adapters.py"
_OPTIONS = (
    *("--enable-lora", "--max-loras", str(SLOTS), "--max-lora-rank", "8", "--max-num-seqs", "16"),
    *("--dtype", "float32", "--max-model-len", "1024", "--num-gpu-blocks-override", "1024"),
    "--no-enable-log-requests",
)
"""Whole precision, so that a batch of several requests answers like one request alone."""
_SETTINGS = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "OMP_NUM_THREADS": "1"}


class Adapters:
    """The engines and their adapters, a gateway before them, and all checks."""

    def __init__(self, stage: EngineStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._ports = [unused_port() for _ in range(ENGINES)]
        self._starts = Counter[int]()
        self._engines: list[EngineProcess] = []
        self._sources = {f"lora-{number}": stage.folder / "adapters" / str(number) for number in range(ADAPTERS)}
        self._expected: dict[str, str] = {}

    async def run(self) -> None:
        """Everything, in order; the engines are gone afterwards."""
        await asyncio.to_thread(self._make_adapters)
        self._engines = [self._start(number) for number in range(ENGINES)]
        try:
            for engine in self._engines:
                await asyncio.to_thread(engine.await_health)
            learned = "each adapter answers in its own way"
            if await self._report.check(learned, self._learn_answers):
                gateway = self._stage.gateway({"models": [self._fleet()]})
                killed = "an engine is killed, and started again"
                await self._report.check(killed, lambda: self._lose_engine(gateway, 1))
        finally:
            for engine in self._engines:
                engine.kill()

    def _make_adapters(self) -> None:
        folders = [str(folder) for folder in self._sources.values()]
        command = [str(self._stage.installed.engine_python), str(_MAKER), str(self._stage.installed.model), *folders]
        subprocess.run(command, check=True)

    def _start(self, number: int) -> EngineProcess:
        """Starts an engine, for the first time or again at its port; it is not healthy yet."""
        self._starts[number] += 1
        name = f"adapters-{number}-{self._starts[number]}"
        port = self._ports[number]
        return self._stage.engine(name, *_OPTIONS, core=number, port=port, environment=_SETTINGS)

    def _fleet(self) -> dict[str, object]:
        adapters = [{"name": name, "source": str(folder)} for name, folder in self._sources.items()]
        fleet = fleet_of(_MODEL, [(engine, "Serve") for engine in self._engines])
        for number, instance in enumerate(fleet["instances"]):
            instance["id"] = f"engine-{number}"
        return {**fleet, "adapterSlots": SLOTS, "adapters": adapters}

    # What each adapter answers.

    async def _learn_answers(self) -> Numbers:
        """Asks the engines themselves, one adapter at a time."""
        names = list(self._sources)
        parts = [names[number::ENGINES] for number in range(ENGINES)]
        pairs = zip(self._engines, parts, strict=True)
        await asyncio.gather(*(self._learn_from(engine, part) for engine, part in pairs))
        texts = list(self._expected.values())
        alike = [text for text, count in Counter(texts).items() if count > 1]
        numbers: Numbers = {"adapters": len(self._sources), "answers": len(set(texts)), "starts_alike": _closest(texts)}
        require(not alike, "adapters answer alike, so answers show nothing", numbers | {"alike": alike[:3]})
        return numbers

    async def _learn_from(self, engine: EngineProcess, names: Sequence[str]) -> None:
        async with openai_client(engine.url) as client:
            self._expected[_MODEL] = (await _request_answer(client, _prompt(_MODEL, stream=False))).text
            for name in names:
                body = {"lora_name": name, "lora_path": str(self._sources[name])}
                (await client.post("/v1/load_lora_adapter", json=body)).raise_for_status()
                self._expected[name] = (await _request_answer(client, _prompt(name, stream=False))).text
                (await client.post("/v1/unload_lora_adapter", json={"lora_name": name})).raise_for_status()

    # Traffic.

    async def _lose_engine(self, gateway: GatewayProcess, number: int) -> Numbers:
        """Runs traffic while an engine is killed and comes back."""
        traffic = _Traffic(gateway.url, list(self._sources), Random(_SEED))
        slots = _SlotWatch()
        tasks = [asyncio.create_task(traffic.run(client)) for client in range(_CLIENTS)]
        watch = asyncio.create_task(slots.run(lambda: self._engines))
        try:
            await traffic.count(_PHASE_REQUESTS)
            await asyncio.to_thread(self._engines[number].kill)
            await traffic.count(_PHASE_REQUESTS)
            engine = self._engines[number] = self._start(number)
            await asyncio.to_thread(engine.await_health)
            without = len(traffic.answers) - _PHASE_REQUESTS
            async with openai_client(engine.url) as client:
                await wait_until(lambda: _has_adapters(client, engine), _RETURN_SECONDS, _POLL_SECONDS)
            await traffic.count(_PHASE_REQUESTS)
        finally:
            traffic.is_over = True
            await asyncio.gather(*tasks)
            watch.cancel()
        numbers = self._judge(traffic.answers) | {
            "requests_without_the_engine": without,
            "start_seconds": engine.started_seconds,
            "most_adapters_on_an_engine": slots.most,
            "engine_loads": self._engine_loads(),
        }
        require(not numbers["failed"], "requests failed", numbers)
        require(not numbers["wrong"], "answers came from another adapter", numbers)
        require(slots.most <= SLOTS, "an engine had more adapters than slots", numbers)
        return numbers

    def _judge(self, answers: Sequence[tuple[str, EngineAnswer]]) -> Numbers:
        """Returns what became of the requests: which adapter each answer came from."""
        failed = [f"{answer.status} {answer.error}" for _, answer in answers if not answer.ended]
        whole = [(name, answer.text) for name, answer in answers if answer.ended]
        origins = [(name, text, answering(text, self._expected)) for name, text in whole]
        wrong = [f"{name}: {text!r}" for name, text, names in origins if name not in names]
        return {
            "requests": len(answers),
            "adapters_asked": len({name for name, _ in answers}),
            "failed": len(failed),
            "wrong": len(wrong),
            "undecided": sum(len(names) > 1 for _, _, names in origins),
            "answers_of_every_byte": sum(text == self._expected[name] for name, text in whole),
            "answer_seconds": spread([answer.seconds for _, answer in answers]),
            "first_failures": failed[:3],
            "first_wrong": wrong[:3],
        }

    def _engine_loads(self) -> int:
        logs = self._stage.folder.glob("adapters-*.log")
        return sum(log.read_text(errors="replace").count("Loaded new LoRA adapter") for log in logs)


@dataclass(slots=True)
class _Traffic:
    """Clients that name adapters, a few of them most of the time; every second one streams."""

    url: str
    names: Sequence[str]
    draw: Random
    answers: list[tuple[str, EngineAnswer]] = field(default_factory=list)
    is_over: bool = False

    async def run(self, number: int) -> None:
        """Sends until `is_over`."""
        weights = [1.0 / (rank + 1) for rank in range(len(self.names))]
        async with openai_client(self.url) as client:
            while not self.is_over:
                (name,) = self.draw.choices(self.names, weights)
                self.answers.append((name, await send_prompt(client, _prompt(name, stream=number % 2 == 0))))
                await asyncio.sleep(_PAUSE_SECONDS)

    async def count(self, more: int) -> None:
        until = len(self.answers) + more
        await wait_until(lambda: len(self.answers) >= until, _PHASE_SECONDS, _POLL_SECONDS)


@dataclass(slots=True)
class _SlotWatch:
    """The largest number of adapters that an engine lists."""

    most: int = 0

    async def run(self, engines: Callable[[], Sequence[EngineProcess]]) -> None:
        """Asks all engines again and again, until it is cancelled."""
        async with openai_client("") as client:
            while True:
                for engine in engines():
                    with suppress(httpx.HTTPError):
                        self.most = max(self.most, await _listed(client, engine))
                await asyncio.sleep(_POLL_SECONDS)


async def _listed(client: httpx.AsyncClient, engine: EngineProcess) -> int:
    answer = (await client.get(f"{engine.url}/v1/models")).raise_for_status()
    return sum(model.get("parent") is not None for model in answer.json()["data"])


async def _has_adapters(client: httpx.AsyncClient, engine: EngineProcess) -> bool:
    try:
        return await _listed(client, engine) > 0
    except httpx.HTTPError:
        return False


def answering(text: str, expected: Mapping[str, str]) -> set[str]:
    """Returns the names whose expected answers begin most like a text.

    Why: the end of an answer that another engine continued is not determined.
    """
    shared = {name: _shared_length(text, known) for name, known in expected.items()}
    longest = max(shared.values())
    return {name for name, size in shared.items() if size == longest and size > 0}


def _shared_length(first: str, second: str) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _closest(texts: Sequence[str]) -> int:
    ordered = sorted(texts)
    return max(_shared_length(*pair) for pair in itertools.pairwise(ordered))


def _prompt(name: str, *, stream: bool) -> TextPrompt:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "Why does the sea look blue? Say it in a few words."}],
        "max_tokens": _TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    prompt = TextPrompt(0, "chat", "/v1/chat/completions", body)
    return prompt.as_stream() if stream else prompt


async def _request_answer(client: httpx.AsyncClient, prompt: TextPrompt) -> EngineAnswer:
    answer = await send_prompt(client, prompt)
    require(answer.ended and answer.text, f"{json.dumps(prompt.body)}: {answer.status} {answer.error}")
    return answer
