"""The SDKs of OpenAI and Anthropic, for Python and Node, directly and through a gateway.

They must get the same both ways, and a budget stops them with the refusal of their dialect. The
checks are `e2e/vllm/sdks/checks.py` and `checks.mjs`. Some checks an engine cannot pass, such as
calls of tools at a simulated one. They must fail in the same way through the gateway.
"""

import asyncio
import hmac
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage, fleet_of, start_engine
from e2e.vllm.report import Numbers, VllmReport, require
from e2e.vllm.sdks.installation import SdkInstallation, install_sdks
from fairlead_testing.processes import unused_port

NAME = "sdks"
MODEL = "tiny"
DIALECTS = ("messages", "responses", "chat")
LANGUAGES = ("python", "node")
_PEPPER, _KEY = "sdks", "sk-all"
_PRICE = {"input": "100", "output": "100"}
_DOLLARS_PER_TOKEN = 100 / 1_000_000
_BUDGET = 0.05
_REFUSALS = {"messages": "rate_limit_error", "responses": "insufficient_quota", "chat": "insufficient_quota"}
_IGNORED = {
    "sim": ("text", "helper"),
    "sglang": (
        "unknown model",
        "count of an unknown model",
        "unknown id",
        "cancel of an unknown id",
        "unknown earlier id",
    ),
}
"""Values that are not compared, by kind of engine. SGLang takes every name of a model, and refuses
unknown ids with 400.
"""
_TIMEOUT_SECONDS = 1_200
_ENGINE_OPTIONS = (
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
)
_ENGINE_ENVIRONMENT = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}


def vllm_engine(stage: EngineStage) -> EngineProcess:
    return stage.engine("sdks", *_ENGINE_OPTIONS, names=(MODEL,), environment=_ENGINE_ENVIRONMENT)


def simulated_engine(stage: EngineStage) -> EngineProcess:
    """Starts a simulated engine in place of vLLM."""
    port = unused_port()
    options = ("--served-model-name", MODEL, "--max-model-len", "4096", "--speed", "20")
    command = [sys.executable, "-m", "fairlead_sim", "engine", "--listen", f"127.0.0.1:{port}", *options]
    engine = start_engine("sdks", command, port, stage.folder / "sdks.log", environment={})
    stage.engines.append(engine)
    return engine


class ClientSdks:
    """One engine, and one gateway before it whose tenants have budgets.

    start: starts the engine.
    kind: the type of the engine in the fleet file. Texts of a simulated one differ between tenants,
        so they are not compared.
    """

    def __init__(
        self,
        stage: EngineStage,
        report: VllmReport,
        start: Callable[[EngineStage], EngineProcess] = vllm_engine,
        kind: str = "vllm",
    ) -> None:
        self._stage = stage
        self._report = report
        self._start = start
        self._kind = kind
        self._ignored = _IGNORED.get(kind, ())

    async def run(self) -> None:
        """Runs all checks of both languages."""
        sdks = install_sdks()
        self._report.add("versions of the SDKs", {"holds": True, **sdks.versions()})
        engine = self._start(self._stage)
        try:
            engine.await_health()
            gateway = self._gateway(engine)
            for language in LANGUAGES:
                direct = await _lines(sdks, language, engine.url, "none")
                through = await _lines(sdks, language, gateway, _KEY)
                require(direct and direct.keys() == through.keys(), "the program ended early", {"made": list(through)})
                for name, line in through.items():
                    self._report.add(f"{language}: {name}", compare(direct[name], line, self._ignored))
                for dialect in DIALECTS:
                    arguments = (sdks, language, gateway, f"{language}-{dialect}", "budget", dialect)
                    (line,) = (await _lines(*arguments)).values()
                    self._report.add(f"{language}: budget, {dialect}", judge_budget(dialect, line["said"]))
        finally:
            engine.kill()

    def _gateway(self, engine: EngineProcess) -> str:
        tenants = self._stage.folder / "sdk-tenants.yaml"
        budget = {"usd": f"{_BUDGET}", "per": "Month"}
        keys = [f"{language}-{dialect}" for language in LANGUAGES for dialect in DIALECTS]
        documents = [_tenant("all", _KEY), *(_tenant(key, key, budget=budget) for key in keys)]
        tenants.write_text("---\n".join(json.dumps(document) + "\n" for document in documents))
        fleet = fleet_of(MODEL, [(engine, "Serve")], kind=self._kind)
        model = {**fleet, "price": _PRICE, "allowedFields": ["background", "store"]}
        pepper = {"FAIRLEAD_KEY_PEPPER": _PEPPER}
        return self._stage.gateway({"models": [model]}, "--tenants", str(tenants), environment=pepper).url


def _tenant(name: str, key: str, **spec: object) -> dict[str, Any]:
    digest = hmac.new(_PEPPER.encode(), key.encode(), "sha256").hexdigest()
    kind = {"apiVersion": "serving.fairlead.io/v1alpha1", "kind": "ModelTenant"}
    return {**kind, "metadata": {"name": name}, "spec": {"keys": [{"name": "test", "digest": digest}], **spec}}


async def _lines(sdks: SdkInstallation, language: str, url: str, key: str, *mode: str) -> dict[str, dict[str, Any]]:
    """Returns the lines of a program by the name of their check."""
    command = [*sdks.command(language), url, key, MODEL, *mode]
    run = subprocess.run
    done = await asyncio.to_thread(run, command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    require(not done.returncode, f"{language}: {done.stderr[-500:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


def compare(direct: dict[str, Any], through: dict[str, Any], ignored: Sequence[str] = ()) -> Numbers:
    """Returns whether a check says the same directly and through the gateway.

    ignored: names of values that are not compared.
    """
    passes = "said" in direct
    if _compared(direct, ignored) == _compared(through, ignored):
        return {"holds": True, "engine_passes": passes}
    return {"holds": False, "engine_passes": passes, "direct": direct, "through": through}


def _compared(line: dict[str, Any], ignored: Sequence[str]) -> tuple[Any, Any]:
    said = line.get("said") or {}
    failed = line.get("failed")
    if failed and (failed[1] or 0) >= 500:
        failed = failed[:1]  # the gateway answers with a status of its own
    return {name: value for name, value in said.items() if name not in ignored}, failed


def judge_budget(dialect: str, said: dict[str, Any]) -> Numbers:
    """Returns whether a budget stopped the client at its amount, with the refusal of its dialect.

    Why half of it: a request reserves the longest answer that it can get. So the last request is
    refused before the budget is used up.
    """
    spent = said["tokens"] * _DOLLARS_PER_TOKEN
    one = spent / max(1, said["answered"])
    stops = _BUDGET / 2 <= spent <= _BUDGET + one
    refused = said["raised"] == ["RateLimitError", 429, _REFUSALS[dialect]] and said["retry_after"]
    return {"holds": bool(stops and refused), "spent_dollars": round(spent, 6), "budget_dollars": _BUDGET, **said}
