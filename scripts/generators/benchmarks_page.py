"""Tables of `docs/benchmarks.md`, from the committed results."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, Final

BENCHMARKS_PAGE: Final = "docs/benchmarks.md"
_MARKER: Final = re.compile(r"(<!-- Table: ([a-z-]+)\. -->\n).*?(<!-- End of the table\. -->\n)", re.S)

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
_GOOD: Final = 0.99
_LIMIT_ERRORS: Final = ("over-run", "under-use")
_LIMITERS: Final = (
    "fairlead estimated",
    "fairlead strict",
    "litellm (preset)",
    "aibrix (preset)",
    "envoy ai gateway (preset)",
)
_LOOPBACK_LIMITERS: Final = ("fairlead estimated", "fairlead strict", "litellm", "", "")
_CONTROLLERS: Final = (
    ("hpa-concurrency", "HPA, concurrency"),
    ("hpa-request-rate", "HPA, request rate"),
    ("hpa-kv", "HPA, KV use"),
    ("hpa-waiting", "HPA, waiting requests"),
    ("kpa-concurrency", "KPA, concurrency, as shipped"),
    ("kpa-concurrency-delayed", "KPA, concurrency, variant with a scale-down delay"),
    ("kpa-request-rate", "KPA, request rate"),
    ("keda-concurrency", "KEDA, concurrency"),
    ("keda-request-rate", "KEDA, request rate"),
    ("keda-waiting", "KEDA, waiting requests"),
    ("apa-concurrency", "AIBrix APA, concurrency, as shipped"),
    ("apa-concurrency-fixed", "AIBrix APA, concurrency, variant with its cool-down corrected"),
    ("apa-kv", "AIBrix APA, KV use, as shipped"),
    ("apa-kv-fixed", "AIBrix APA, KV use, variant with its cool-down corrected"),
    ("wva-saturation", "llm-d WVA, saturation"),
    ("dynamo", "Dynamo planner, with a headroom setting of ours"),
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
        "tiers": _tier_table,
    }
    page = (root / BENCHMARKS_PAGE).read_text(encoding="utf-8")
    return _MARKER.sub(lambda found: f"{found[1]}{tables[found[2]](results)}{found[3]}", page)


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    return f"{head}\n|---|{'---:|' * (columns - 1)}\n{''.join(rows)}"


def _routing_table(results: Path) -> str:
    report = _load(results / "demo.json")
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
    parts, rows = _load(results / "gpu.json")["parts"], []
    for suffix in ("-load-0.6", "", "-load-0.9"):
        checks = parts[f"fleet{suffix}"]["checks"]
        load = checks["step costs, all engines at once"]["load"]
        simulated = parts[f"simulator{suffix}"]["checks"]["the presets' order, live and simulated"]
        for name, found in checks.items():
            if not name.startswith("replay: "):
                continue
            preset, _, number = name.removeprefix("replay: ").partition(", round ")
            ttft, tpot = found["ttft_seconds"], found["tpot_seconds"]["mean"]
            other = simulated[preset]["simulated"]
            rows.append(
                f"| {preset}, {load:.0%} | {number} | {ttft['mean']:.2f} s | {ttft['p90']:.2f} s "
                f"| {1_000 * tpot:.0f} ms | {found['cached_token_share']:.1%} "
                f"| {other['ttft_mean']:.2f} s | {1_000 * other['tpot_mean']:.0f} ms |\n"
            )
    head = "| preset, load | run | TTFT mean | TTFT p90 | TPOT | prompt tokens cached | TTFT, simulated | TPOT, simulated |"
    return _table(head, rows)


def _gateway_table(results: Path) -> str:
    value = {row["metric"]: row["value"] for row in _load(results / "gateway.json")["rows"]}
    rows = []
    for load in _LOADS:
        found = [value.get(f"CPU per {load} | {target}") for target in _TARGETS]
        rows.append(f"| {load} | {' | '.join('–' if cpu is None else f'{cpu:.0f}' for cpu in found)} |\n")
    return _table(f"| CPU µs per | Fairlead | {' | '.join(_TARGETS[1:])} |", rows)


def _crowded_table(results: Path) -> str:
    """Returns Fairlead's CPU on a calm and on a crowded machine, and its multiple of two others."""
    value = {row["metric"]: row["value"] for row in _load(results / "gateway-crowded.json")["rows"]}
    rows = []
    for load in _LOADS[:4]:
        cells = [load]
        for suffix in ("", ", crowded"):
            cpu = value[f"CPU per {load}{suffix} | fairlead"]
            others = [value[f"CPU per {load}{suffix} | {other}"] for other in ("sglang-router cache_aware", "Envoy")]
            cells += [f"{cpu:.0f}", *(f"{cpu / other:.2f} ×" for other in others)]
        rows.append(f"| {' | '.join(cells)} |\n")
    return _table(
        "| CPU µs per | calm | ÷ sglang-router | ÷ Envoy | crowded | ÷ sglang-router | ÷ Envoy |",
        rows,
    )


def _scenario_table(results: Path) -> str:
    rows = []
    for name, found in _load(results / "autoscaler.json")["table"]["fairlead"].items():
        ratio = "–" if found["oracle"] is None else f"{found['oracle']:.2f} ×"
        share = f"{found['attainment']:.2%}"
        rows.append(f"| {name} | {share if found['attainment'] >= _GOOD else f'**{share}**'} | {ratio} |\n")
    return _table("| scenario | requests within the SLO | cost ÷ offline optimum |", rows)


def _controller_table(results: Path) -> str:
    table = _load(results / "autoscaler.json")["table"]
    fairlead = table["fairlead"]
    rows = [f"| Fairlead | one configuration | {_kept_scenarios(fairlead)} | 1.0 × | | | |\n"]
    for preset, title in _CONTROLLERS:
        cells = []
        for kind in ("fixed", "best"):
            key = next(key for key in table if key.startswith(f"{preset} at ") and key.endswith(f"({kind})"))
            setting = key.removeprefix(f"{preset} at ").removesuffix(f" ({kind})")
            cells.append(f"{setting} | {_kept_scenarios(table[key])} | {_relative_cost(table[key], fairlead)}")
        rows.append(f"| {title} | {' | '.join(cells)} |\n")
    return _table(
        "| controller | usual setting | keeps 99% in | cost | best setting | keeps 99% in | cost |",
        rows,
    )


def _fleet_table(results: Path) -> str:
    """Returns Fairlead's figures in the fleet simulator; a missed SLO is bold."""
    report = _load(results / "autoscaler-fleet.json")
    rows = []
    for name, found in report["table"]["fairlead"].items():
        share = f"{found['attainment']:.2%}"
        rows.append(
            f"| `{name}` | {share if found['attainment'] >= _GOOD else f'**{share}**'} "
            f"| {found['cost'] / report['bounds'][name]['cost']:.2f} × | {found['cached_share']:.0%} |\n"
        )
    return _table("| scenario | within the SLO | cost ÷ bound of the optimum | prompt tokens cached |", rows)


def _missed_table(results: Path) -> str:
    """Returns every row with a goal that does not hold."""
    rows = []
    for path in sorted(results.glob("*.json")):
        for row in _load(path).get("rows", ()):
            if row["goal"] is not None and not row["holds"]:
                value, unit = (row["value"], row["unit"]) if row["ratio"] is None else (row["ratio"], "×")
                measured = "–" if value is None else f"{value:.3g} {unit}"
                rows.append(f"| `{path.stem}` | {row['metric']} | {measured} | {row['goal']} |\n")
    return _table("| result | row | measured | goal |", rows)


def _limit_table(results: Path) -> str:
    """Returns over-run and under-use by case and product; a dash where none was measured."""
    value = {row["metric"]: row["value"] for row in _load(results / "quota.json")["rows"]}
    rows = []
    for part, names in (("simulated", _LIMITERS), ("over loopback", _LOOPBACK_LIMITERS)):
        cases = dict.fromkeys(
            found[1] for metric in value if (found := re.fullmatch(rf"{part}, (.+): over-run, %: .+", metric))
        )
        for case in cases:
            errors = [[value.get(f"{part}, {case}: {kind}, %: {name}") for kind in _LIMIT_ERRORS] for name in names]
            cells = [" / ".join("–" if one is None else f"{one:.1f}" for one in pair) for pair in errors]
            rows.append(f"| {part}: {case} | {' | '.join(cells)} |\n")
    return _table(
        "| over-run / under-use in % | Fairlead | Fairlead, strict | LiteLLM | AIBrix | Envoy AI Gateway |", rows
    )


def _shadow_table(results: Path) -> str:
    found = _load(results / "shadow.json")["rows"]
    return _table("| part | µs |", [f"| {row['metric']} | {row['value']:.1f} |\n" for row in found])


def _kept_scenarios(scenarios: Mapping[str, Any]) -> str:
    kept = sum(found["attainment"] >= _GOOD for found in scenarios.values())
    return f"{kept} of {len(scenarios)}"


def _relative_cost(scenarios: Mapping[str, Any], fairlead: Mapping[str, Any]) -> str:
    """Returns the mean of cost ÷ Fairlead's cost, where both keep the SLO for 99% of requests."""
    ratios = [
        found["cost"] / fairlead[name]["cost"]
        for name, found in scenarios.items()
        if found["attainment"] >= _GOOD and fairlead[name]["attainment"] >= _GOOD
    ]
    return f"{mean(ratios):.1f} ×" if ratios else "–"


def _knowledge_table(results: Path) -> str:
    """Shows each scenario's verdict on the index, and the bound of perfect knowledge."""
    verdicts = {one["row"]: one for one in _load(results / "knowledge.json")["verdicts"]}
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
    verdicts = {one["row"]: one for one in _load(results / "knowledge-processes.json")["verdicts"]}
    rows = []
    for name in dict.fromkeys(row.partition(":")[0] for row in verdicts):
        cells = [
            verdicts[f"{name}: {measure}: index ÷ no index"]
            for measure in ("recomputed tokens", "p90 TTFT", "gateways' processor time")
        ]
        shown = " | ".join(f"{cell['ratio']:.2f} ({cell['low']:.2f}–{cell['high']:.2f})" for cell in cells)
        rows.append(f"| {name} | {shown} |\n")
    return _table("| scenario | recomputed tokens | p90 TTFT | processor time of gateways |", rows)


def _tier_table(results: Path) -> str:
    """Shows each arm's ratio to no sharing."""
    found = _load(results / "tiers.json")
    intervals = {one["row"]: one for one in found["intervals"]}
    arms = [arm for arm in dict.fromkeys(run["arm"] for run in found["runs"]) if arm != "no sharing"]
    rows = []
    for arm in arms:
        cells = [
            intervals[f"{measure}: {arm} ÷ no sharing"]
            for measure in ("peak throughput", "mean latency", "mean TTFT", "p90 TTFT")
        ]
        shown = " | ".join(f"{cell['ratio']:.2f} ({cell['low']:.2f}–{cell['high']:.2f})" for cell in cells)
        rows.append(f"| {arm} | {shown} |\n")
    return _table("| KV memory | peak throughput | mean latency | mean TTFT | p90 TTFT |", rows)
