"""The rows of prefill and decode after the traffic turned (``flip``), and of decode engines that take prompts (``convertible``).

Every number comes of a call by itself, so that they can be worked out side by side (``each``).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import repeat

from convertible import convertible_rows
from flip import BEST, CHATTY, ENGINES, LONG, STARTUP_SECONDS, balanced, fixed, flip, saturated, settled, throughput
from table import Mapped, Row, comparing, measuring

from fairlead_sim.autoscaling.routing.prefill_placement import PrefillPolicy

SEEDS = 5
CALM = 8_000
"""Requests of each kind below saturation, to see the turn."""
LOAD = 0.85
DIVISIONS = {shape: (8, *range(best - 1, best + 2)) for shape, best in BEST.items()}
SLACK_DIVISIONS = {LONG: (8, 11, 12, 13, 14), CHATTY: (8, 3, 4, 5, 6)}
"""Where the best division is looked for, 1:1 first; and where, when decode engines take prompts."""
FULL = (20_000, 60_000)
"""Requests of each kind at saturation, to see what is finished: half an hour, and an hour and a quarter."""
CROWDED = 1.3
"""Times what the best division carries, as where what one carries is measured."""


def turn(seed: int, computing: PrefillPolicy) -> tuple[float, int, float]:
    """A turn under the core: seconds until within one engine of the best division, requests that were lost or given up, and the share
    within the objectives."""
    made, turned = flip(LOAD, CALM, BEST[LONG], seed, computing=computing)
    calm = balanced(made)
    near = settled(calm, turned, BEST[CHATTY])
    return math.inf if near is None else near, calm.abandoned + calm.lost, calm.attainment


def halved(seed: int, computing: PrefillPolicy) -> float:
    """The share within the objectives where the same is divided 1:1."""
    return fixed(flip(LOAD, CALM, ENGINES // 2, seed, computing=computing)[0]).attainment


def turn_rows(seed: int, bars: Mapping[str, str], each: Mapped) -> list[Row]:
    """How fast the division follows, and who waits for it; of several seeds the worst."""
    seeds = range(seed, seed + SEEDS)
    slack, apart = (each(turn, seeds, repeat(how)) for how in (PrefillPolicy.SLACK, PrefillPolicy.APART))
    halves = each(halved, repeat(seed), (PrefillPolicy.SLACK, PrefillPolicy.APART))
    nears, lost, kept = zip(*slack, strict=True)
    plain = [share for _, _, share in apart]
    metric = "P/D: until within one engine of the best division, less a start"
    rows = [measuring(metric, "s", max(nears) - STARTUP_SECONDS, bars[metric])]
    metric = "P/D: requests whose prefill timed out"
    rows.append(measuring(metric, "requests", float(sum(lost)), bars[metric]))
    metric = "P/D: within the objectives, the turn included, at 85 %"
    rows.append(comparing(metric, "share", min(kept), "every prompt handed over", min(plain), None))
    metric = "P/D: within the objectives, the same divided 1:1, convertible decoders"
    rows.append(comparing(metric, "share", next(halves), "every prompt handed over", next(halves), None))
    return rows


def carries(count: int, shape: tuple[int, int], seed: int, computing: PrefillPolicy) -> float:
    """Requests per second that a division with so many engines for prefill finishes of one kind."""
    return saturated(count, shape, seed, computing=computing)


def division_rows(seed: int, bars: Mapping[str, str], each: Mapped) -> list[Row]:
    """What divisions carry of each kind."""
    rows: list[Row] = []
    shapes = ((LONG, "8k in, 100 out"), (CHATTY, "1k in, 800 out"))
    plain, slack = (
        [each(carries, counts[shape], repeat(shape), repeat(seed), repeat(how)) for shape, _ in shapes]
        for counts, how in ((DIVISIONS, PrefillPolicy.APART), (SLACK_DIVISIONS, PrefillPolicy.SLACK))
    )
    for (shape, name), without, with_slack in zip(shapes, plain, slack, strict=True):
        split = dict(zip(DIVISIONS[shape], without, strict=True))
        best = max(split, key=lambda count: split[count])
        rows.append(measuring(f"P/D: engines that prefill in the best division, {name}", "engines", float(best), None))
        metric = f"P/D: throughput of the best division ÷ 1:1, {name}"
        rows.append(comparing(metric, "requests/s", split[best], "1:1", split[8], bars.get(metric)))
        most = dict(zip(SLACK_DIVISIONS[shape], with_slack, strict=True))
        best = max(most, key=lambda count: most[count])
        metric = f"P/D: with convertible decoders, engines that prefill in the best division, {name}"
        rows.append(measuring(metric, "engines", float(best), None))
        metric = f"P/D: throughput of the best division, {name}: convertible decoders ÷ without"
        rows.append(comparing(metric, "requests/s", most[best], "without", max(split.values()), None))
        metric = f"P/D: throughput of 1:1, {name}: convertible decoders ÷ without"
        rows.append(comparing(metric, "requests/s", most[8], "without", split[8], None))
    return rows


def finished(load: float, requests: int, prefill: int | None, seed: int, computing: PrefillPolicy) -> float:
    """Requests per second over the turn, divided as that says to the end, or by the core (None)."""
    began = BEST[LONG] if prefill is None else prefill
    made = flip(load, requests, began, seed, patience=1e9, computing=computing)[0]
    made = replace(made, seconds=3.0 * made.seconds)  # to the end of what is left
    return throughput(balanced(made) if prefill is None else fixed(made))


def full_rows(seed: int, bars: Mapping[str, str], each: Mapped) -> list[Row]:
    """What is finished over the turn at saturation. The bar is against engines that do as their role says."""
    cases = [(1.0, requests) for requests in FULL] + [(CROWDED, FULL[0])]
    both = (PrefillPolicy.SLACK, PrefillPolicy.APART)
    calls = [(*case, prefill, how) for case in cases for prefill in (None, ENGINES // 2) for how in both]
    loads, requests, prefills, ways = zip(*calls, strict=True)
    found = dict(zip(calls, each(finished, loads, requests, prefills, repeat(seed), ways), strict=True))
    rows: list[Row] = []
    for load, count in cases:
        what = f"P/D: throughput over the turn, {count} requests of each kind"
        if load != 1.0:
            what += f" at {load} times the rate"
        ours = {how: found[load, count, None, how] for how in both}
        halves = {how: found[load, count, ENGINES // 2, how] for how in both}
        base, metric = halves[PrefillPolicy.APART], f"{what}: balanced ÷ 1:1"
        rows.append(comparing(metric, "requests/s", ours[PrefillPolicy.SLACK], "1:1", base, bars.get(metric)))
        metric = f"{what}: balanced, every prompt handed over ÷ 1:1"
        rows.append(comparing(metric, "requests/s", ours[PrefillPolicy.APART], "1:1", base, None))
        metric = f"{what}: balanced ÷ 1:1, convertible decoders in both"
        rows.append(
            comparing(metric, "requests/s", ours[PrefillPolicy.SLACK], "1:1", halves[PrefillPolicy.SLACK], None)
        )
    return rows


ROLE_ROWS: tuple[Callable[[int, Mapping[str, str], Mapped], list[Row]], ...] = (
    turn_rows,
    division_rows,
    full_rows,
    convertible_rows,
)
"""Whatever there is of them, in the order of the table."""
