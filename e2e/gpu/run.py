"""Runs Fairlead with real engines on this machine's GPUs, and writes the report.

    python e2e/gpu/run.py [--engines vllm|sim] [--model PATH] [--only fleet,kill] [--list]

``--list`` prints the parts in their order, the most telling first, with their seconds on an H100.
All of them together take at most ``--seconds``. A part that does not fit into the rest of it is
not begun. The part ``simulator`` needs no engine, only the files of ``fleet`` and ``curves`` in
``--out``.

It is opt-in, and no test run collects it. vLLM must be installed (``--vllm`` says how it is
called). Models have random weights unless ``--model`` names a real one. With ``--engines sim``,
simulated engines take vLLM's place. Exits 1 when a check did not hold, and 2 without a GPU.
"""

import argparse
import asyncio
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import uvloop

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from e2e.gpu.control_plane import ControlPlane  # noqa: E402
from e2e.gpu.engine_faults import EngineFaults, PrefillDecode  # noqa: E402
from e2e.gpu.engines import CURVE_STEP_TOKENS, EngineGroup, EngineSettings, list_accelerators  # noqa: E402
from e2e.gpu.simulated_fleet import CURVES_FILE, SimulatedFleet  # noqa: E402
from e2e.gpu.step_costs import (  # noqa: E402
    FULL_GRID,
    LOAD,
    QUICK_GRID,
    FleetRouting,
    RoutingOptions,
    compare_profiles,
    measure_step_costs,
)
from e2e.vllm.report import Numbers, VllmReport, require  # noqa: E402

ENGINES: Final = 4
_LOG_BYTES: Final = 200_000
START_SECONDS: Final = 83
"""Start of the fleet of engines, for the parts that share it."""


@dataclass(frozen=True, slots=True)
class GpuPart:
    """A part of a run.

    seconds: on an H100; measured, starts of engines of its own included.
    """

    name: str
    seconds: int
    shows: str
    needs_fleet: bool = False


PARTS: Final = (
    GpuPart(
        "fleet", 194, "step costs, three routing presets on a trace, and the index compared with the engines", True
    ),
    GpuPart("kill", 73, "SIGKILL of an engine under streams, and another in its place", True),
    GpuPart("sleep", 9, "that engine sleeps and wakes", True),
    GpuPart("adapter", 10, "that engine loads a LoRA adapter", True),
    GpuPart("handoff", 36, "prefill and decode on two engines, by NIXL"),
    GpuPart("curves", 75, "prompts and decode steps of one large engine, and built-in profiles compared with them"),
    GpuPart("simulator", 0, "the fleet simulator on the measured costs"),
)
_NAMES: Final = tuple(part.name for part in PARTS)
BUDGET_SECONDS: Final = START_SECONDS + sum(part.seconds for part in PARTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts and returns the exit code."""
    options = _parse(arguments)
    if options.list:
        print(f"{'start':<10} {START_SECONDS:>4} s  four engines, for parts marked *")
        for part in PARTS:
            print(f"{part.name:<10} {part.seconds:>4} s{'*' if part.needs_fleet else ' '} {part.shows}")
        print(f"in all {BUDGET_SECONDS} s, of which --seconds {options.seconds:g} may be taken")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that engines end with us
    accelerators = [] if options.engines == "sim" else list_accelerators()
    needs_engines = any(part != "simulator" for part in options.only)
    if options.engines == "vllm" and needs_engines and not accelerators:
        print("no GPU: nvidia-smi lists none. ENGINES=sim runs on simulated engines", file=sys.stderr)
        return 2
    if options.model and options.kv_bytes is None and 0 < len(accelerators) < ENGINES:
        print(
            f"--kv-bytes is missing: {ENGINES} engines share {len(accelerators)} GPUs, and the memory that a real "
            "model leaves is not known. Give each engine's bytes of KV cache",
            file=sys.stderr,
        )
        return 2
    command = shlex.split(options.vllm)
    settings = EngineSettings(
        accelerators, options.model, command, shlex.split(options.vllm_args), kv_bytes=options.kv_bytes
    )
    options.out.mkdir(parents=True, exist_ok=True)
    report = VllmReport(_versions(settings, options), options.note)
    with TemporaryDirectory(prefix="fairlead-gpu-") as folder:
        try:
            uvloop.run(_run_parts(settings, report, options, Path(folder)))
        finally:
            _keep_logs(Path(folder), options.out)
            report.write(options.report)
    print(f"{'everything held' if report.all_passed else 'NOT everything held'}; report in {options.report}")
    return 0 if report.all_passed else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engines", choices=("vllm", "sim"), default="vllm")
    parser.add_argument("--model", help="folder or hub name of a real model; default: random weights")
    parser.add_argument("--only", default=",".join(_NAMES), help="parts, with commas between them")
    parser.add_argument("--list", action="store_true", help="print the parts and their seconds, and run nothing")
    parser.add_argument(
        "--seconds", type=float, default=BUDGET_SECONDS, help="begin no part that would end later (%(default)s)"
    )
    parser.add_argument("--vllm", default="vllm", metavar="COMMAND", help="how vLLM is called")
    parser.add_argument("--vllm-args", default="", metavar="OPTIONS", help="further options of all its engines")
    parser.add_argument(
        "--kv-bytes", type=int, help="cache of each engine where engines share a GPU; a real --model needs it"
    )
    parser.add_argument("--requests", type=int, help="requests of a replay; default: 500, and 40 of simulated engines")
    parser.add_argument(
        "--load", type=float, default=LOAD, help="share of the engines' time that prompts take without any cache hit"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often every preset is replayed")
    parser.add_argument(
        "--round-seconds", type=float, default=3_600.0, help="begin no further replay of a later round after so long"
    )
    parser.add_argument("--note", default="", help="a remark on the circumstances, kept in the report")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "e2e-gpu", help="measurements of requests, and logs")
    parser.add_argument(
        "--report", type=Path, help="default: bench/results/gpu.json, or gpu.json in --out with --engines sim"
    )
    options = parser.parse_args(arguments)
    options.began = time.monotonic()
    options.only = [part for part in options.only.split(",") if part]
    if unknown := [part for part in options.only if part not in _NAMES]:
        parser.error(f"--only: unknown parts {', '.join(unknown)}; known: {', '.join(_NAMES)}")
    late = [part for part in ("sleep", "adapter") if part in options.only and "kill" not in options.only]
    if late:
        parser.error(f"--only: {', '.join(late)} needs kill, whose second engine it uses")
    is_simulated = options.engines == "sim"
    options.requests = options.requests or (40 if is_simulated else 500)
    options.report = options.report or (
        options.out / "gpu.json" if is_simulated else ROOT / "bench" / "results" / "gpu.json"
    )
    return options


async def _run_parts(settings: EngineSettings, report: VllmReport, options: argparse.Namespace, folder: Path) -> None:
    if any(part.name in options.only for part in PARTS if part.needs_fleet):
        await _run_fleet(settings, report, options, folder)
    parts = {
        "handoff": PrefillDecode(settings, report, folder).run,
        "curves": lambda: _measure_curves(settings, report, options, folder),
        "simulator": SimulatedFleet(report, options.out).run,
    }
    for name, run in parts.items():
        await _run_part(name, report, options, run)


def _seconds_left(options: argparse.Namespace) -> float:
    return float(options.began + options.seconds - time.monotonic())


async def _run_fleet(settings: EngineSettings, report: VllmReport, options: argparse.Namespace, folder: Path) -> None:
    """Starts the fleet once for all of its parts."""
    simulated = settings.is_simulated
    with ExitStack() as stack:
        group = stack.enter_context(EngineGroup(settings, folder, count=ENGINES))
        plane = ControlPlane(group, folder / "fleet")

        async def start() -> Numbers:
            seconds = await asyncio.to_thread(group.start_all)
            await asyncio.to_thread(stack.enter_context, plane)
            version = await asyncio.to_thread(group.version)
            return {"engines": ENGINES, "version": version, "slowest_start_seconds": seconds}

        report.begin("start")
        is_started = await report.check("engines start", start)
        report.end()
        if not is_started:
            return
        routing = RoutingOptions(
            options.requests, options.load, options.rounds, until=options.began + options.round_seconds
        )
        if simulated:
            routing = replace(routing, probes=24, grid=QUICK_GRID)
        faults = EngineFaults(group, plane, report, folder)
        parts = {
            "fleet": FleetRouting(group, plane, report, routing, options.out).run,
            "kill": faults.kill,
            "sleep": faults.sleep,
            "adapter": faults.adapter,
        }
        for part, run in parts.items():
            await _run_part(part, report, options, run)


async def _run_part(
    name: str, report: VllmReport, options: argparse.Namespace, run: Callable[[], Awaitable[None]]
) -> None:
    """Runs a part that was chosen and fits into the time, and writes the report.

    A part that cannot even begin does not hide the others.
    """
    if name not in options.only:
        return
    left, needed = _seconds_left(options), PARTS[_NAMES.index(name)].seconds
    if options.engines != "sim" and left < needed:
        print(f"not run: {name} takes {needed} s, and {max(0.0, left):.0f} s are left", flush=True)
        return
    report.begin(name)
    try:
        await run()
    except Exception as error:  # noqa: BLE001
        report.add("the whole part", {"holds": False, "why": f"{type(error).__name__}: {error}"[-2_000:]})
    report.end()
    report.write(options.report)


async def _measure_curves(
    settings: EngineSettings, report: VllmReport, options: argparse.Namespace, folder: Path
) -> None:
    """Measures one large engine alone, and compares the fitted profile and the built-in ones with
    it.
    """

    async def measure() -> Numbers:
        grid = QUICK_GRID if settings.is_simulated else FULL_GRID
        alone = replace(settings, accelerators=settings.accelerators[:1])
        with EngineGroup(alone, folder, count=1, shape="8b", step_tokens=CURVE_STEP_TOKENS) as group:
            seconds = await asyncio.to_thread(group.start_all)
            costs = await measure_step_costs(
                group, grid, seconds=max(30.0, _seconds_left(options)), on_row=lambda row: print(row, flush=True)
            )
            version = await asyncio.to_thread(group.version)
        numbers: Numbers = {"version": version, "start_seconds": seconds, **costs.to_json()}
        (options.out / CURVES_FILE).write_text(json.dumps(numbers, indent=1))
        numbers |= compare_profiles(costs)
        errors = numbers["fit_errors"]
        require(errors["prompt_mean"] < 0.15 and errors["decode_mean"] < 0.15, "the formula does not fit", numbers)
        return numbers

    await report.check("step costs of one engine alone", measure)


def _versions(settings: EngineSettings, options: argparse.Namespace) -> dict[str, str]:
    """Returns what was run: the parts of an earlier report with the same versions stay in it."""
    if options.only == ["simulator"] and options.report.exists():
        earlier: dict[str, str] = json.loads(options.report.read_text())["versions"]
        return earlier
    if settings.is_simulated:
        return {"engines": "simulated"}
    device, count = settings.accelerators[0], len(settings.accelerators)
    return {
        "engines": "vLLM",
        "gpu": f"{count} × {device.name}",
        "driver": device.driver,
        "model": options.model or "random weights",
    }


def _keep_logs(folder: Path, out: Path) -> None:
    """Copies the ends of all logs."""
    logs = out / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    for log in folder.rglob("*.log"):
        (logs / log.name).write_bytes(log.read_bytes()[-_LOG_BYTES:])


if __name__ == "__main__":
    sys.exit(main())
