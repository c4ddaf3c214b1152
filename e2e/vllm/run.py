"""Runs everything with real engines and writes the report.

    python e2e/vllm/run.py [--only surface,nixl] [--report FILE]

It is opt-in: it installs a real engine (``engine/installation.py``), takes minutes and two
processor cores, and no test run collects it. Exits 1 when a check did not hold. The parts:

- ``surface``: clients, overload, faults, the conformance probes.
- ``index``: the engines' caches and what an index knows of them, in five parts with names of their
  own.
- ``nixl`` and ``mooncake``: prefill and decode on two engines.
- ``hung``: local mode, and an engine whose core is stopped.

The report keeps the earlier results of parts that do not run.
"""

import argparse
import asyncio
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))  # the conformance probes

from e2e.vllm.engine.engine_processes import EngineStage  # noqa: E402
from e2e.vllm.engine.installation import install  # noqa: E402
from e2e.vllm.engine.kv_connectors import mooncake, nixl  # noqa: E402
from e2e.vllm.report import VllmReport  # noqa: E402
from e2e.vllm.scenarios.api_surface import ApiSurface  # noqa: E402
from e2e.vllm.scenarios.hung_core import HungCore  # noqa: E402
from e2e.vllm.scenarios.index_scenarios import INDEXES, IndexScenarios  # noqa: E402
from e2e.vllm.scenarios.prefill_handoff import HandoffScenario  # noqa: E402

PARTS = ("surface", *INDEXES, "nixl", "mooncake", "hung")


async def run(stage: EngineStage, report: VllmReport, parts: Sequence[str]) -> None:
    """The parts, one after another; one that cannot even begin does not hide the others."""
    for part in parts:
        report.begin(part)
        try:
            await _scenario(part, stage, report).run()
        except Exception as error:  # noqa: BLE001
            report.add("the whole part", {"holds": False, "why": f"{type(error).__name__}: {error}"[-2_000:]})


def _scenario(
    part: str, stage: EngineStage, report: VllmReport
) -> ApiSurface | HandoffScenario | HungCore | IndexScenarios:
    if part == "surface":
        return ApiSurface(stage, report)
    if part in INDEXES:
        return IndexScenarios(stage, report, part)
    if part == "hung":
        return HungCore(stage, report)
    return HandoffScenario(stage, report, nixl() if part == "nixl" else mooncake(stage.installed))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument(
        "--report", type=Path, default=ROOT / "bench" / "results" / "vllm.json", help="where the report goes"
    )
    options = parser.parse_args(arguments)
    asked = [part for part in options.only.split(",") if part]
    parts = [part for part in PARTS if any(part == one or part.startswith(f"{one}-") for one in asked)]
    unknown = [one for one in asked if not any(part == one or part.startswith(f"{one}-") for part in PARTS)]
    if unknown:
        parser.error(f"unknown parts: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that engines end with us
    installed = install()
    report = VllmReport(installed.versions())
    try:
        with TemporaryDirectory(prefix="fairlead-vllm-") as folder:
            try:
                with EngineStage(installed, Path(folder)) as stage:
                    asyncio.run(run(stage, report, parts))
            finally:
                if not report.all_passed:
                    _keep_logs(Path(folder))
    finally:
        report.write(options.report)  # also of a run that was ended: what was checked by then
    print(f"{'everything held' if report.all_passed else 'NOT everything held'}; report in {options.report}")
    return 0 if report.all_passed else 1


def _keep_logs(folder: Path) -> None:
    """Copies the ends of the logs and the published events, for the analysis of failures."""
    kept = ROOT / "out" / "vllm-logs"
    kept.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        (kept / log.name).write_bytes(log.read_bytes()[-1_000_000:])
    for recording in folder.glob("*.recording"):
        shutil.copy(recording, kept)


if __name__ == "__main__":
    sys.exit(main())
