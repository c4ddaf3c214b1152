"""The plant's gateway where it goes by shape: the gateway's own choice among kinds of accelerator, on the plant's loads."""

from collections.abc import Callable, Sequence

from fairlead.fleet import Instance, Objectives
from fairlead_autoscaler.scaling.values import ScaledModel
from fairlead_gateway.routing.glimpses import Glimpses
from fairlead_gateway.routing.holdings import Place
from fairlead_gateway.routing.kinds import Kinds
from fairlead_gateway.routing.ledger import Ledger, Tally
from fairlead_kvstore.mirror import Matched
from fairlead_sim.scaling.pool import Pool, Replica

Best = tuple[Pool, Replica]


class Shaped:
    """For one scenario; it learns prices and lengths of answers as a gateway does."""

    def __init__(self, model: ScaledModel) -> None:
        self._objectives = Objectives(
            model.target, model.ttft_seconds, model.ttft_per_kilo_token_seconds, model.itl_seconds
        )
        self._kinds = Kinds(b"plant")
        self._glimpses = Glimpses(Ledger())
        self._ready: tuple[str, ...] = ()
        self._tallies: dict[str, Tally] = {}

    def ended(self, prompt: int, output: int) -> None:
        """An answer of so many tokens came to a prompt of that length."""
        self._kinds.answered(prompt, output)

    def best(self, prompt: int, pools: Sequence[Pool], least: Callable[[Sequence[Pool]], Best | None]) -> Best | None:
        """The replica of the kind that the prompt is for; of the next where nobody of it meets the objective for the first token,
        and of all where nobody does. ``least`` finds the ready replica of some pools with the least to do."""
        self._look(pools)
        if not self._kinds.several:
            return least(pools)
        ranked = self._kinds.ranked(prompt, None, Matched(), 1.0, self._glimpses)
        self._kinds.charge(ranked)
        for kind in ranked.kinds:
            names = {place.id.partition("/")[0] for place in kind.places}
            found = least([pool for pool in pools if pool.name in names])
            if found is None:
                continue
            pool, replica = found
            first = _backlog(pool, replica) + pool.setup.profile.prefill(prompt)
            if first <= ranked.objective_seconds:
                return found
        return least(pools)

    def _look(self, pools: Sequence[Pool]) -> None:
        """Who is ready, and what is on each."""
        here = [(f"{pool.name}/{replica.name}", pool, replica) for pool in pools for replica in pool.ready]
        ready = tuple([name for name, _, _ in here])
        if ready != self._ready:
            self._ready = ready
            self._tallies = {name: Tally(name) for name in ready}
            profiles = {name: pool.setup.profile for name, pool, _ in here}
            ones = [
                Instance(name, "plant", "model", pool.name, "", role=pool.setup.facts.role, profile=profiles[name])
                for name, pool, _ in here
            ]
            places = {name: Place(name, profiles[name], self._tallies[name], 0, 0, None) for name in ready}
            self._kinds.update(ones, places, self._objectives)
        for name, pool, replica in here:
            tally, engine = self._tallies[name], replica.engine
            tally.inflight = engine.running() + engine.waiting()
            tally.inflight_tokens = float(engine.burden_tokens())
            tally.backlog_seconds = _backlog(pool, replica)


def _backlog(pool: Pool, replica: Replica) -> float:
    """Seconds of prompts that are not computed yet: they count twice in the burden."""
    engine, profile = replica.engine, pool.setup.profile
    held = engine.kv_share() * profile.kv_tokens
    return profile.prefill_token_seconds * max(0.0, engine.burden_tokens() - held) / 2.0
