"""What an autoscaler is put through: each kind of scenario from a seed.

The kinds, pools and objectives are those of the study that came before this code: smooth days, a noisy hour, crashes, an engine
slower than its profile, answers that grow, long prompts, a mix that moves between prefill and decode, missing or lying metrics,
steps, bursts and silence. Two take a published trace where its folder is given (Azure's hour of conversations, Mooncake's
conversations) and traffic of its shape where not; Azure's hour of code completion is always of its shape, see ``load.bursts``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from fairlead.fleet import Role
from fairlead_sim.azure import read_azure
from fairlead_sim.scaling import load as loads
from fairlead_sim.scaling.book import Load
from fairlead_sim.scaling.plant import Scenario, Troubles
from fairlead_sim.scaling.pool import PoolSetup, StartUp
from fairlead_sim.scaling.pools import COLD, LARGE_COLD, LARGE_COST, WARM, large, model, pool, small
from fairlead_sim.traces import read_mooncake, spread_ties
from fairlead_sim.traffic import conversation

AZURE_CONVERSATIONS = "AzureLLMInferenceTrace_conv.csv"
MOONCAKE_CONVERSATIONS = "conversation_trace.jsonl"
_CHAT_TTFT, _CHAT_ITL = 3.0, 0.15
_HOUR = 3600.0
_MINUTE_NOISE, _MINUTE_MEMORY = 0.06, 0.3


def smooth_chat(seed: int, traces: Path | None = None, *, mean: float = 8.0) -> Scenario:
    """A day of conversations; ``mean`` requests a second."""
    del traces
    return _chat("smooth-chat", seed, 0.0, 24, mean)


def smooth_short(seed: int, traces: Path | None = None) -> Scenario:
    """A day of code completion, bound by prompts: from night to day eleven times as much within three hours."""
    del traces
    draw = Random(f"smooth-short {seed}")
    rates = _noisy(loads.levels(loads.CODE_DAY, 24 * 60, 12.0), draw)
    load = loads.poisson(rates, loads.SHORT_OUTPUT, draw)
    return _made("smooth-short", seed, 24, load, [pool(large(), 2, cost=LARGE_COST)], 2.0, 0.2)


def smooth_mixed(seed: int, traces: Path | None = None) -> Scenario:
    """The first half of the day of conversations, on two kinds of accelerator."""
    del traces
    draw = Random(f"smooth-mixed {seed}")
    rates = _noisy(loads.levels(loads.CHAT_DAY, 12 * 60, 12.0), draw)
    pools = [pool(small(), 9), pool(large(), 0, cost=LARGE_COST, startup=LARGE_COLD, minimum=0)]
    return _made("smooth-mixed", seed, 12, loads.poisson(rates, loads.CHAT, draw), pools, _CHAT_TTFT, _CHAT_ITL)


def mixed_shapes(seed: int, pools: Sequence[PoolSetup]) -> Scenario:
    """Two hours of the day's rise, short chat and a fifth of documents, in front of ``pools``; the gateway goes by shape. For
    ``bench/mix``, where the pools are not the same in each run."""
    draw = Random(f"mixed-shapes {seed}")
    rates = _noisy(loads.levels(loads.CHAT_DAY, 24 * 60, 14.0)[8 * 60 : 10 * 60], draw)
    chat, documents = (loads.poisson(rates, lengths, draw) for lengths in (loads.SHORT_CHAT, loads.DOCUMENTS))
    made = _made("mixed-shapes", seed, 2, loads.mixed(chat, documents, lambda at: 0.2, draw), list(pools), 4.0, 0.12)
    return replace(made, by_shape=True)


def noisy_hour(seed: int, traces: Path | None = None) -> Scenario:
    """A real hour of conversations, three times as dense: a minute's load may be half or twice that of the one before."""
    draw = Random(f"noisy-hour {seed}")
    trace = None if traces is None else traces / AZURE_CONVERSATIONS
    if trace is not None and trace.is_file():
        load = loads.denser(read_azure(trace), 3, draw)
    else:
        rates = loads.noisy([16.2] * 60, draw, sigma=0.22, memory=0.5)
        load = loads.poisson([max(9.5, min(25.4, rate)) for rate in rates], loads.CHAT, draw)
    return _made("noisy-hour", seed, _hours(load), load, [pool(small(), 14)], _CHAT_TTFT, _CHAT_ITL)


def failures(seed: int, traces: Path | None = None) -> Scenario:
    """Four hours of conversations; a replica crashes every twenty minutes, 15 of 100 starts fail."""
    del traces
    made = _chat("failures", seed, 10.0, 4, 8.0, replace(COLD, failing=0.15))
    return replace(made, troubles=Troubles(crashes=tuple([1_200.0 * one for one in range(1, 12)])))


def slow_engine(seed: int, traces: Path | None = None) -> Scenario:
    """Two hours of conversations; after fifty minutes every step takes 1.35 times as long."""
    del traces
    made = _chat("slow-engine", seed, 10.0, 2, 8.0)
    return replace(made, troubles=Troubles(slow=((3_000.0, 1.35),)))


def drift(seed: int, traces: Path | None = None) -> Scenario:
    """The same requests a second for two hours; answers grow to two and a half times their length within ten minutes."""
    del traces
    draw = Random(f"drift {seed}")

    def stretch(at: float) -> float:
        return 1.0 + 1.5 * min(1.0, max(0.0, (at - 3_000.0) / 600.0))

    load = loads.poisson(_noisy([7.0] * 120, draw), loads.CHAT, draw, stretch)
    return _made("drift", seed, 2, load, [pool(small(), 7)], _CHAT_TTFT, _CHAT_ITL)


def long_prompts(seed: int, traces: Path | None = None) -> Scenario:
    """Conversations with prompts of 6,800 tokens on the mean and up to 20,480 (longer ones are left out, as everywhere), twice as
    dense as recorded. A step with a full chunk alone takes longer than the inter-token objective."""
    draw = Random(f"long-prompts {seed}")
    trace = None if traces is None else traces / MOONCAKE_CONVERSATIONS
    if trace is not None and trace.is_file():
        load = loads.denser(spread_ties(read_mooncake(trace)), 2, draw)
    else:
        load = loads.denser(conversation(10_000, seed=seed), 2, draw)
    return _made("long-prompts", seed, _hours(load), load, [pool(large(), 7, cost=LARGE_COST)], 30.0, 0.1)


def mix_move(seed: int, traces: Path | None = None) -> Scenario:
    """Prefill and decode apart; requests turn from conversations to code completion within ten minutes, and back."""
    del traces
    draw = Random(f"mix-move {seed}")
    rates = _noisy([24.0 * (1.0 + 0.25 * math.sin(2 * math.pi * minute / 60.0)) for minute in range(120)], draw)

    def short(at: float) -> float:
        return min(1.0, max(0.0, (at - 2_400.0) / 600.0)) - min(1.0, max(0.0, (at - 4_800.0) / 600.0))

    load = loads.mixed(
        loads.poisson(rates, loads.CHAT, draw), loads.poisson(rates, loads.SHORT_OUTPUT, draw), short, draw
    )
    pools = [
        pool(large(), 5, cost=LARGE_COST, role=Role.PREFILL, name="prefill"),
        pool(large(), 3, cost=LARGE_COST, role=Role.DECODE, name="decode"),
    ]
    return _made("mix-move", seed, 2, load, pools, 2.0, 0.1)


def blind(seed: int, traces: Path | None = None) -> Scenario:
    """Four hours of conversations, two of them with rising load; twice five minutes without any metrics."""
    del traces
    made = _chat("blind", seed, 6.0, 4, 8.0)
    return replace(made, troubles=Troubles(blind=((5_400.0, 5_700.0), (10_800.0, 11_100.0))))


def lying(seed: int, traces: Path | None = None) -> Scenario:
    """The same, with metrics that read zero."""
    del traces
    made = _chat("lying", seed, 6.0, 4, 8.0)
    return replace(made, troubles=Troubles(lying=((5_400.0, 5_700.0), (10_800.0, 11_100.0))))


def step_cold(seed: int, traces: Path | None = None) -> Scenario:
    """Five times the load at once, for twenty minutes, unforeseen."""
    del traces
    return _step("step-cold", seed, COLD)


def step_warm(seed: int, traces: Path | None = None) -> Scenario:
    """The same where replicas start within 10 s."""
    del traces
    return _step("step-warm", seed, WARM)


def on_off(seed: int, traces: Path | None = None) -> Scenario:
    """An hour of code completion in bursts, a third of its minutes silent."""
    del traces
    draw = Random(f"on-off {seed}")
    load = loads.bursts(draw)
    return _made("on-off", seed, 1, load, [pool(large(), 3, cost=LARGE_COST)], 4.0, 0.2)


def zero_cold(seed: int, traces: Path | None = None) -> Scenario:
    """Silence, then a few requests for some minutes, six hours long; replicas start cold."""
    del traces
    return _zero("zero-cold", seed, COLD, _CHAT_TTFT)


def zero_warm(seed: int, traces: Path | None = None) -> Scenario:
    """The same where replicas start within 10 s and the first token has 15 s."""
    del traces
    return _zero("zero-warm", seed, WARM, 15.0)


KINDS: Mapping[str, Callable[[int, Path | None], Scenario]] = {
    "smooth-chat": smooth_chat,
    "smooth-short": smooth_short,
    "smooth-mixed": smooth_mixed,
    "noisy-hour": noisy_hour,
    "failures": failures,
    "slow-engine": slow_engine,
    "drift": drift,
    "long-prompts": long_prompts,
    "mix-move": mix_move,
    "blind": blind,
    "lying": lying,
    "step-cold": step_cold,
    "step-warm": step_warm,
    "on-off": on_off,
    "zero-cold": zero_cold,
    "zero-warm": zero_warm,
}
"""Each makes a scenario from a seed and the folder of the published traces, None where it is not at hand."""


def _made(
    name: str,
    seed: int,
    hours: float,
    load: Load,
    pools: list[PoolSetup],
    ttft: float,
    itl: float,
    *,
    patience: float = 60.0,
) -> Scenario:
    return Scenario(name, seed, hours * _HOUR, model(pools, ttft, itl, patience=patience), tuple(pools), load)


def _chat(name: str, seed: int, begin: float, hours: int, mean: float, startup: StartUp = COLD) -> Scenario:
    """Hours of the day of conversations, ``mean`` requests a second over the whole day."""
    draw = Random(f"{name} {seed}")
    day = loads.levels(loads.CHAT_DAY, 24 * 60, mean)
    rates = _noisy(day[int(begin * 60) : int(begin * 60) + hours * 60], draw)
    load = loads.poisson(rates, loads.CHAT, draw)
    return _made(name, seed, hours, load, [pool(small(), math.ceil(rates[0]), startup=startup)], _CHAT_TTFT, _CHAT_ITL)


def _step(name: str, seed: int, startup: StartUp) -> Scenario:
    load = loads.poisson([2.5] * 20 + [12.5] * 20 + [2.5] * 20, loads.CHAT, Random(f"step {seed}"))
    return _made(name, seed, 1, load, [pool(small(), 3, startup=startup)], _CHAT_TTFT, _CHAT_ITL)


def _zero(name: str, seed: int, startup: StartUp, ttft: float) -> Scenario:
    hours, draw = 6, Random(f"zero {seed}")
    rates: list[float] = []
    while len(rates) < hours * 60:
        rates += [0.0] * draw.randint(8, 35)
        rates += [draw.choice((0.3, 1.0, 3.0))] * draw.randint(3, 12)
    load = loads.poisson(rates[: hours * 60], loads.CHAT, draw)
    pools = [pool(small(), 0, startup=startup, minimum=0)]
    return _made(name, seed, hours, load, pools, ttft, _CHAT_ITL, patience=400.0)


def _noisy(rates: list[float], draw: Random) -> list[float]:
    return loads.noisy(rates, draw, sigma=_MINUTE_NOISE, memory=_MINUTE_MEMORY)


def _hours(load: Load) -> float:
    return math.ceil(load.arrivals[-1] / 60.0) / 60.0
