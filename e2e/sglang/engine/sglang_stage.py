"""Real SGLang servers as processes, on processors, and gateways before them.

A server has several processes (front end, scheduler, detokenizer), which get signals as one group.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2e.sglang.engine.installation import STAND_IN
from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage, fleet_of, start_engine
from fairlead_testing.processes import unused_port

KIND = "sglang"
MODEL = "tiny"
UNPINNED = "FAIRLEAD_UNPINNED"
"""The variable without which SGLang cannot load adapters here; `stand_in` reads it."""
MAX_TOKENS = 8_192
"""Limit: tokens in the KV cache of an engine."""
_OPTIONS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--disable-overlap-schedule", "--mem-fraction-static", "0.1", "--max-total-tokens", str(MAX_TOKENS)),
    *("--enable-metrics", "--enable-cache-report", "--context-length", "4096", "--sleep-on-idle"),
)
_ENVIRONMENT = {
    "PYTHONPATH": str(STAND_IN),
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(slots=True)
class SglangStage(EngineStage):
    """Started engines and gateways, which end with the block."""

    def engine(
        self,
        name: str,
        *options: str,
        core: int = 0,
        environment: Mapping[str, str] | None = None,
        names: Sequence[str] = (MODEL,),
        port: int | None = None,
        nice: int = 5,
    ) -> EngineProcess:
        """Starts an engine; it is not healthy yet.

        core: has no effect. names: of its model; only the first is used.
        options: after those that all engines here have.
        """
        port = port or unused_port()
        command = [
            *(str(self.installed.engine_python), "-m", "sglang.launch_server"),
            *("--model-path", str(self.installed.model), "--served-model-name", names[0]),
            *("--host", "127.0.0.1", "--port", str(port), "--nccl-port", str(unused_port())),
            *_OPTIONS,
            *options,
        ]
        log, more = self.folder / f"{name}.log", environment or {}
        path = f"{self.installed.engine_python.parent}{os.pathsep}{os.environ['PATH']}"  # for ninja
        engine = start_engine(name, command, port, log, environment={"PATH": path, **_ENVIRONMENT, **more}, nice=nice)
        self.engines.append(engine)
        return engine


def fleet(*engines: EngineProcess, **model: object) -> dict[str, Any]:
    """A fleet file with one model.

    model: more fields of it.
    """
    return {"models": [{**fleet_of(MODEL, [(engine, "Serve") for engine in engines], kind=KIND), **model}]}


def running(engine: EngineProcess) -> float:
    return engine.metric("sglang:num_running_reqs") + engine.metric("sglang:num_queue_reqs")
