"""Who computes a prompt in a plant whose prefill and decode are apart: the gateway's own decision (``routing.convertible``), from
what its ledger would know of the two engines. What KV takes to travel it has learned; how far apart tokens come it is not told."""

from enum import Enum, auto

from fairlead.decision import Decision
from fairlead.limits import Limits
from fairlead_autoscaler.scaling.values import ScaledModel
from fairlead_gateway.routing.convertible import STAYS, Side, where
from fairlead_gateway.routing.gaps import Gaps
from fairlead_sim.scaling.pool import Pool, Replica

_LEAST_TOKENS = Limits().handoff_least_tokens


class Computing(Enum):
    """Where prompts are computed: every one on a prefill engine; those under the gateway's limit on the engine that answers; or as
    the gateway decides from slack."""

    APART = auto()
    BY_LENGTH = auto()
    SLACK = auto()


def decided(
    how: Computing,
    here: tuple[Pool, Replica],
    there: tuple[Pool, Replica] | None,
    prompt_tokens: int,
    model: ScaledModel,
    way_seconds: float,
    gaps: Gaps,
    now: float,
) -> Decision:
    """Whether ``here``, the decode replica that would answer, computes the prompt, or ``there``, the best of those that prefill.
    ``gaps`` hears of it when it stays."""
    asked = _side(*here, prompt_tokens, gaps.prefill_share(here[1].name, now))
    found = where(
        asked,
        None if there is None else _side(*there, prompt_tokens, 0.0),
        itl_seconds=model.itl_seconds if how is Computing.SLACK else None,
        ttft_seconds=model.ttft_seconds,
        way_seconds=way_seconds,
        least_tokens=_LEAST_TOKENS,
    )
    if found.rule in STAYS:
        gaps.computes(asked.id, asked.own_seconds, now)
    return found


def _side(pool: Pool, replica: Replica, prompt_tokens: int, prefill_share: float) -> Side:
    engine, profile = replica.engine, pool.setup.facts.profile
    return Side(
        replica.name,
        profile,
        engine.backlog_seconds,
        (profile or pool.setup.profile).prefill(prompt_tokens),
        prompt_tokens,
        0.0,
        engine.running() + engine.waiting(),
        engine.inflight_tokens,
        prefill_share,
    )
