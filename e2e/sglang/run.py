"""Runs everything with real SGLang servers on processors, and writes the report.

    python e2e/sglang/run.py [--only api,index] [--report FILE]

It is opt-in: it installs a real engine (`engine/installation.py`), takes minutes and two processor
cores, and no test run collects it. Exits 1 when a check did not hold. The parts:

- ``api``: all dialects, metrics, clients that leave, a full engine.
- ``continued``: streams that are cut and go on, or say why they cannot.
- ``continued-kills``: streams of all dialects at two engines, of which one is killed.
- ``index``: KV events, and what the index predicts of the cache.
- ``parsers``: reasoning and calls of tools, of a model that says what a script says.
- ``adapters``: LoRA adapters that the gateway loads.
- ``hung``: a scheduler that is stopped.
- ``sdks``: the SDKs of OpenAI and Anthropic, for Python and Node, as `e2e/vllm` checks them.

The report keeps the earlier results of parts that do not run.
"""

import argparse
import asyncio
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from e2e.sglang.engine.installation import install
from e2e.sglang.engine.sglang_stage import KIND, SglangStage
from e2e.sglang.scenarios import adapters, api, continued, hung, kv_index, parsers
from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage
from e2e.vllm.report import ROOT, Scenario, VllmReport
from e2e.vllm.scenarios.client_sdks import NAME as SDKS
from e2e.vllm.scenarios.client_sdks import ClientSdks

PARTS: dict[str, Callable[[SglangStage, VllmReport], Scenario]] = {
    api.NAME: api.Api,
    continued.NAME: continued.Continued,
    continued.KILLS: continued.ContinuedKills,
    kv_index.NAME: kv_index.KvIndex,
    parsers.NAME: parsers.Parsers,
    adapters.NAME: adapters.Adapters,
    hung.NAME: hung.Hung,
    SDKS: lambda stage, report: ClientSdks(stage, report, _sdk_engine, KIND),
}
_SDK_OPTIONS = ("--tool-call-parser", "hermes", "--constrained-json-disable-any-whitespace")
_LOG_BYTES = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--report", type=Path, default=ROOT / "bench" / "results" / "sglang.json")
    options = parser.parse_args(arguments)
    parts = [part for part in options.only.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown parts: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that engines end with us
    installed = install()
    report = VllmReport(installed.versions())
    with TemporaryDirectory(prefix="fairlead-sglang-") as folder:
        try:
            with SglangStage(installed, Path(folder)) as stage:
                asyncio.run(_run(stage, report, parts))
        finally:
            if not report.all_passed:
                _keep_logs(Path(folder))
            if any(part.is_over for part in report.parts.values()):
                report.write(options.report)
    print(f"{'everything held' if report.all_passed else 'NOT everything held'}; report in {options.report}")
    return 0 if report.all_passed else 1


def _sdk_engine(stage: EngineStage) -> EngineProcess:
    return stage.engine(SDKS, *_SDK_OPTIONS)


async def _run(stage: SglangStage, report: VllmReport, parts: Sequence[str]) -> None:
    for part in parts:
        await report.run_part(part, lambda: PARTS[part](stage, report))  # noqa: B023 - called at once


def _keep_logs(folder: Path) -> None:
    kept = ROOT / "out" / "sglang-logs"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for log in folder.glob("*.log"):
        (kept / log.name).write_bytes(log.read_bytes()[-_LOG_BYTES:])


if __name__ == "__main__":
    sys.exit(main())
