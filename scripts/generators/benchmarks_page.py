"""Tables of `docs/benchmarks.md`, from the committed results."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any, Final

from scripts.generators.page_tables import with_tables

BENCHMARKS_PAGE: Final = "docs/benchmarks.md"
_TARGETS: Final = (
    "fairlead",
    "sglang-router cache_aware",
    "smg cache_aware",
    "vllm-router cache_aware",
    "Envoy",
    "nginx",
)
_LOADS: Final = (
    "2 KB request",
    "32 KB request",
    "128 KB request",
    "200 streams × 20 chunks/s",
    "1,000 streams × 20 chunks/s",
    "220 KB streamed request, 100/s",
)
GOOD: Final = 0.99
_LIMIT_ERRORS: Final = ("over-run", "under-use")
_LIMITERS: Final = ("fairlead estimated", "fairlead strict")
_CONTROLLERS: Final = (
    ("hpa-concurrency", "HPA, concurrency"),
    ("hpa-request-rate", "HPA, request rate"),
    ("hpa-kv", "HPA, KV use"),
    ("hpa-waiting", "HPA, waiting requests"),
    ("kpa-concurrency", "KPA, concurrency, as shipped"),
    ("kpa-concurrency-delayed", "KPA, concurrency, variant with a scale-down delay"),
    ("kpa-request-rate", "KPA, request rate"),
)


def benchmarks_page(root: Path) -> str:
    """Returns the page with its tables filled from `bench/results`."""
    results = root / "bench" / "results"
    tables: Mapping[str, Callable[[Path], str]] = {
        "routing": _routing_table,
        "gpu": _gpu_table,
        "gateway": _gateway_table,
        "crowded": _crowded_table,
        "scenarios": _scenario_table,
        "controllers": _controller_table,
        "fleet-simulator": _fleet_table,
        "missed": _missed_table,
        "limits": _limit_table,
        "shadow": _shadow_table,
        "knowledge": _knowledge_table,
        "knowledge-processes": _knowledge_process_table,
        "profiles": _profile_table,
        "outside-plant": _outside_table,
        "agents": _agent_table,
        "canaries": _canary_table,
    }
    return with_tables(root / BENCHMARKS_PAGE, {name: table(results) for name, table in tables.items()})


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    return f"{head}\n|---|{'---:|' * (columns - 1)}\n{''.join(rows)}"


def _routing_table(results: Path) -> str:
    report = load(results / "demo.json")
    rows = [
        _routing_row(preset, run, found) for preset, runs in report["policies"].items() for run, found in runs.items()
    ]
    rows += [
        _routing_row(preset, "light load, simulated", runs["simulated"])
        for preset, runs in report["light_load"]["policies"].items()
    ]
    return _table("| preset | run | TTFT mean | TTFT p90 | within the SLO | prompt tokens cached |", rows)


def _routing_row(preset: str, run: str, found: Mapping[str, Any]) -> str:
    seconds = found["ttft_seconds"]
    return (
        f"| {preset} | {run} | {seconds['mean']:.2f} s | {seconds['p90']:.2f} s "
        f"| {found['within_objective']:.1%} | {found['cached_token_share']:.1%} |\n"
    )


def _gpu_table(results: Path) -> str:
    parts, rows = load(results / "gpu.json")["parts"], []
    for suffix in ("-load-0.6", "", "-load-0.9"):
        checks = parts[f"fleet{suffix}"]["checks"]
        share = checks["step costs, all engines at once"]["load"]
        simulated = parts[f"simulator{suffix}"]["checks"]["the presets' order, live and simulated"]
        for name, found in checks.items():
            if not name.startswith("replay: "):
                continue
            preset, _, number = name.removeprefix("replay: ").partition(", round ")
            ttft, tpot = found["ttft_seconds"], found["tpot_seconds"]["mean"]
            other = simulated[preset]["simulated"]
            rows.append(
                f"| {preset}, {share:.0%} | {number} | {ttft['mean']:.2f} s | {ttft['p90']:.2f} s "
                f"| {1_000 * tpot:.0f} ms | {found['cached_token_share']:.1%} "
                f"| {other['ttft_mean']:.2f} s | {1_000 * other['tpot_mean']:.0f} ms |\n"
            )
    head = "| preset, load | run | TTFT mean | TTFT p90 | TPOT | prompt tokens cached | TTFT, simulated | TPOT, simulated |"
    return _table(head, rows)


def _gateway_table(results: Path) -> str:
    value = {row["metric"]: row["value"] for row in load(results / "gateway.json")["rows"]}
    rows = []
    for case in _LOADS:
        found = [value.get(f"CPU per {case} | {target}") for target in _TARGETS]
        rows.append(f"| {case} | {' | '.join('–' if cpu is None else f'{cpu:.0f}' for cpu in found)} |\n")
    return _table(f"| CPU µs per | Fairlead | {' | '.join(_TARGETS[1:])} |", rows)


def _crowded_table(results: Path) -> str:
    """Returns Fairlead's CPU on a calm and on a crowded machine, and its multiple of two others."""
    value = {row["metric"]: row["value"] for row in load(results / "gateway-crowded.json")["rows"]}
    rows = []
    for case in _LOADS[:4]:
        cells = [case]
        for suffix in ("", ", crowded"):
            cpu = value[f"CPU per {case}{suffix} | fairlead"]
            others = [value[f"CPU per {case}{suffix} | {other}"] for other in ("sglang-router cache_aware", "Envoy")]
            cells += [f"{cpu:.0f}", *(f"{cpu / other:.2f} ×" for other in others)]
        rows.append(f"| {' | '.join(cells)} |\n")
    return _table(
        "| CPU µs per | calm | ÷ sglang-router | ÷ Envoy | crowded | ÷ sglang-router | ÷ Envoy |",
        rows,
    )


def _scenario_table(results: Path) -> str:
    rows = []
    for name, found in load(results / "autoscaler.json")["table"]["fairlead"].items():
        ratio = "–" if found["oracle"] is None else f"{found['oracle']:.2f} ×"
        share = f"{found['attainment']:.2%}"
        rows.append(f"| {name} | {share if found['attainment'] >= GOOD else f'**{share}**'} | {ratio} |\n")
    return _table("| scenario | requests within the SLO | cost ÷ offline optimum |", rows)


def _controller_table(results: Path) -> str:
    table = load(results / "autoscaler.json")["table"]
    fairlead = table["fairlead"]
    rows = [f"| Fairlead | one configuration | {kept_scenarios(fairlead)} of {len(fairlead)} | 1.0 × | | | |\n"]
    for preset, title in _CONTROLLERS:
        cells = []
        for kind in ("fixed", "best"):
            key = next(key for key in table if key.startswith(f"{preset} at ") and key.endswith(f"({kind})"))
            setting = key.removeprefix(f"{preset} at ").removesuffix(f" ({kind})")
            kept, cost = kept_scenarios(table[key]), relative_cost(table[key], fairlead)
            cells.append(f"{setting} | {kept} of {len(fairlead)} | {'–' if cost is None else f'{cost:.1f} ×'}")
        rows.append(f"| {title} | {' | '.join(cells)} |\n")
    return _table(
        "| controller | usual setting | keeps 99% in | cost | best setting | keeps 99% in | cost |",
        rows,
    )


def _fleet_table(results: Path) -> str:
    """Returns Fairlead's figures in the fleet simulator; a missed SLO is bold."""
    report = load(results / "autoscaler-fleet.json")
    rows = []
    for name, found in report["table"]["fairlead"].items():
        share = f"{found['attainment']:.2%}"
        rows.append(
            f"| `{name}` | {share if found['attainment'] >= GOOD else f'**{share}**'} "
            f"| {found['cost'] / report['bounds'][name]['cost']:.2f} × | {found['cached_share']:.0%} |\n"
        )
    return _table("| scenario | within the SLO | cost ÷ bound of the optimum | prompt tokens cached |", rows)


def _missed_table(results: Path) -> str:
    """Returns every row with a goal that does not hold."""
    rows = []
    for path in sorted(results.glob("*.json")):
        for row in load(path).get("rows", ()):
            if row["goal"] is not None and not row["holds"]:
                value, unit = (row["value"], row["unit"]) if row["ratio"] is None else (row["ratio"], "×")
                measured = "–" if value is None else f"{value:.3g} {unit}"
                rows.append(f"| `{path.stem}` | {row['metric']} | {measured} | {row['goal']} |\n")
    return _table("| result | row | measured | goal |", rows)


def _limit_table(results: Path) -> str:
    """Returns over-run and under-use by case and enforcement; a dash where none was measured."""
    value = {row["metric"]: row["value"] for row in load(results / "quota.json")["rows"]}
    rows = []
    cases = dict.fromkeys(
        found[1] for metric in value if (found := re.fullmatch(r"simulated, (.+): over-run, %: .+", metric))
    )
    for case in cases:
        errors = [[value.get(f"simulated, {case}: {kind}, %: {name}") for kind in _LIMIT_ERRORS] for name in _LIMITERS]
        cells = [" / ".join("–" if one is None else f"{one:.1f}" for one in pair) for pair in errors]
        rows.append(f"| {case} | {' | '.join(cells)} |\n")
    return _table("| over-run / under-use in % | estimated | strict |", rows)


def _shadow_table(results: Path) -> str:
    found = load(results / "shadow.json")["rows"]
    return _table("| part | µs |", [f"| {row['metric']} | {row['value']:.1f} |\n" for row in found])


def kept_scenarios(scenarios: Mapping[str, Any]) -> int:
    return sum(found["attainment"] >= GOOD for found in scenarios.values())


def relative_cost(scenarios: Mapping[str, Any], fairlead: Mapping[str, Any]) -> float | None:
    """Returns the mean of cost ÷ Fairlead's cost, where both keep the SLO for 99% of requests."""
    ratios = [
        found["cost"] / fairlead[name]["cost"]
        for name, found in scenarios.items()
        if found["attainment"] >= GOOD and fairlead[name]["attainment"] >= GOOD
    ]
    return mean(ratios) if ratios else None


def _knowledge_table(results: Path) -> str:
    """Shows each scenario's verdict on the index, and the bound of perfect knowledge."""
    verdicts = {one["row"]: one for one in load(results / "knowledge.json")["verdicts"]}
    scenarios = list(dict.fromkeys(row.partition(":")[0] for row in verdicts))
    rows = []
    for name in scenarios:
        cells = []
        for measure in ("recomputed tokens", "p90 TTFT"):
            index, perfect = (
                verdicts[f"{name}: {measure}: {arm} ÷ no index"] for arm in ("index", "perfect knowledge")
            )
            cells += [f"{index['ratio']:.2f} ({index['low']:.2f}–{index['high']:.2f})", f"{perfect['ratio']:.2f}"]
            cells.append(index["verdict"])
        rows.append(f"| {name} | {cells[0]} | {cells[1]} | {cells[3]} | {cells[4]} | {cells[2]}, {cells[5]} |\n")
    return _table("| scenario | recomputed tokens | perfect | p90 TTFT | perfect | verdicts |", rows)


def _knowledge_process_table(results: Path) -> str:
    """Shows each scenario's ratios of real gateways."""
    verdicts = {one["row"]: one for one in load(results / "knowledge-processes.json")["verdicts"]}
    rows = []
    for name in dict.fromkeys(row.partition(":")[0] for row in verdicts):
        cells = [
            verdicts[f"{name}: {measure}: index ÷ no index"]
            for measure in ("recomputed tokens", "p90 TTFT", "gateways' processor time")
        ]
        shown = " | ".join(f"{cell['ratio']:.2f} ({cell['low']:.2f}–{cell['high']:.2f})" for cell in cells)
        rows.append(f"| {name} | {shown} |\n")
    return _table("| scenario | recomputed tokens | p90 TTFT | processor time of gateways |", rows)


def _profile_table(results: Path) -> str:
    """Shows the mean errors of the profiles of an H100, compared with its measured costs."""
    checks = load(results / "gpu.json")["parts"]["simulator"]["checks"].values()
    errors = next(check["builtin_errors"] for check in checks if "builtin_errors" in check)
    rows = [
        f"| `{name}` | {found['prompt_mean']:.1%} | {found['decode_mean']:.1%} |\n"
        for name, found in sorted(errors.items())
        if name.startswith("h100")
    ]
    return _table("| profile | prompts | decode steps |", rows)


def outside_costs(results: Path) -> dict[str, float]:
    """Returns cost ÷ offline optimum of each family of the second plant, a geometric mean."""
    runs: dict[str, list[float]] = {}
    for run in load(results / "autoscaler-outside.json")["runs"]:
        runs.setdefault(run["family"], []).append(run["replica_hours"] / run["optimum"]["replica_hours"])
    return {family: geometric_mean(ratios) for family, ratios in runs.items()}


def _outside_table(results: Path) -> str:
    """Shows the shares of requests that a start could have served; below 99% they are bold."""
    tuning, judging = (load(results / f"autoscaler-outside{part}.json")["runs"] for part in ("", "-judging"))
    rows = []
    for family, cost in outside_costs(results).items():
        judged = _servable_shares(judging, family)
        cells = [*_share_cells(_servable_shares(tuning, family)), f"{cost:.2f} ×", str(len(judged) or "–")]
        rows.append(f"| {family} | {' | '.join((*cells, *_share_cells(judged)))} |\n")
    return _table(
        "| family | within the SLO, mean | least | cost ÷ offline optimum | judging seeds | mean | least |", rows
    )


def _servable_shares(runs: list[Any], family: str) -> list[float]:
    return [
        run["share"] * run["requests"] / max(run["requests"] - run["unservable"], 1)
        for run in runs
        if run["family"] == family
    ]


def _share_cells(shares: list[float]) -> list[str]:
    shown = [mean(shares), min(shares)] if shares else []
    return [f"{share:.2%}" if round(share, 4) >= GOOD else f"**{share:.2%}**" for share in shown] or ["–", "–"]


def _agent_table(results: Path) -> str:
    value = {row["metric"]: row["value"] for row in load(results / "agents.json")["rows"]}
    arms = [metric.removeprefix("moves: ") for metric in value if metric.startswith("moves: ")]
    rows = [
        f"| {arm} | {value[f'cached share: {arm}']:.1%} | {value[f'moves: {arm}']:.1f} "
        f"| {1_000 * value[f'p90 TTFT: {arm}']:.0f} ms |\n"
        for arm in arms
    ]
    return _table("| what the agents send | cached share of the prompt | moves in 80 turns | TTFT p90 |", rows)


def _canary_table(results: Path) -> str:
    value = {row["metric"]: row["value"] for row in load(results / "canary.json")["rows"]}
    rows = []
    for metric in value:
        if found := re.fullmatch(r"(?:rolled back|found) within (\d+) min: (.+)", metric):
            time = value.get(f"median time until it is found: {found[2]}")
            shown = "–" if time is None else f"{time:.1f} min"
            rows.append(f"| {found[2]}, {found[1]} minutes | {value[metric]:g}% | {shown} |\n")
    return _table("| canary | rolled back | median time |", rows)
