"""One trial: a preset before a fleet on some traffic, from a seed; what it served, and how much it can carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fairlead.fleet import Model, Objectives
from fairlead.profile import EngineProfile, preset
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.capacity import Judge, Missed, capacity
from fairlead_sim.course import Course
from fairlead_sim.figures import TARGET_SECONDS, Bar, Figures, counted, figures
from fairlead_sim.fleet import MODEL, NAMESPACE, OneRouter, instances_of
from fairlead_sim.outside import Outside, Sharing
from fairlead_sim.pooled import LeastQueued
from fairlead_sim.script import Happening, play
from fairlead_sim.served import Served
from fairlead_sim.trace_prompts import Prompts
from fairlead_sim.traces import TRACE_BLOCK_TOKENS, TraceRequest, at_rate
from fairlead_sim.weather import CALM, Weather

H100: Final = preset("h100-llama8b")
OBJECTIVES: Final = Objectives(ttft_seconds=TARGET_SECONDS)


AT_ONCE: Final = Sharing()


@dataclass(frozen=True, slots=True)
class Seam:
    """Cores of an outside tool: ``core(info, preset, seed)`` makes one (``fairlead_sim.seams``), and each gateway has its own.
    ``sharing`` None: gateways and engines tell nothing. ``weather`` is what becomes of engines' events on their way."""

    core: Callable[[Mapping[str, Any], str, int], Any]
    gateways: int = 1
    sharing: Sharing | None = AT_ONCE
    weather: Weather = CALM


@dataclass(frozen=True, slots=True)
class Trial:
    """``seed`` draws the names' hashes, so that homes are a draw too. ``script`` is what happens to the fleet meanwhile. Without a
    ``seam`` one router sees all that is sent and no event, which is the faster way. ``pooled``: neither, but the bound that no fleet
    can be (``pooled.py``)."""

    preset: str = "dual-hash"
    profile: EngineProfile = H100
    engines: int = 8
    seed: int = 0
    objectives: Objectives = OBJECTIVES
    script: tuple[Happening, ...] = ()
    seam: Seam | None = None
    pooled: bool = False

    def prompts(self) -> Prompts:
        """For the requests of one traffic, to be shared by trials of one seed."""
        return Prompts(TRACE_BLOCK_TOKENS, secret=self._secret, seed=self._model.key.encode())

    def run(self, requests: Sequence[TraceRequest], *, prompts: Prompts | None = None) -> list[Served]:
        """What became of each request, in the order given."""
        return self._course(requests, prompts, None)[0]

    def figures(self, requests: Sequence[TraceRequest], *, prompts: Prompts | None = None) -> Figures:
        """Of the requests that count; ``requests`` by arrival."""
        served, front = self._course(requests, prompts, None)
        homed = None
        if isinstance(front, OneRouter) and self.preset == "dual-hash" and served:
            homed = front.on_home / len(served)
        limit = self.objectives.ttft_limit(0.0)
        target = TARGET_SECONDS if limit is None else limit
        return figures(counted(served), self.engines, home_share=homed, target_seconds=target)

    def keeps(self, requests: Sequence[TraceRequest], bar: Bar, *, prompts: Prompts | None = None) -> bool:
        """Whether the fleet keeps the bar on these requests; an answer of no comes early."""
        try:
            return bar.kept(counted(self._course(requests, prompts, Judge(bar, requests))[0]))
        except Missed:
            return False

    def capacity(
        self,
        requests: Sequence[TraceRequest],
        *,
        bar: Bar | None = None,
        guess: float = 25.0,
        prompts: Prompts | None = None,
    ) -> float:
        """Requests a second, to within 1.5 %."""
        bar, shared = bar or Bar(), prompts or self.prompts()
        return capacity(lambda rate: self.keeps(at_rate(requests, rate), bar, prompts=shared), guess)

    @property
    def names(self) -> list[str]:
        """Of the engines that are there at the beginning."""
        return [f"sim-{index}/0/0" for index in range(self.engines)]

    def front(self, prompts: Prompts) -> OneRouter | Outside:
        """What stands before engines with a cache each."""
        if self.seam is None:
            return self._one(self.names, prompts)
        profile, seam = self.profile, self.seam
        cores = [self.core(seam) for _ in range(seam.gateways)]
        return Outside(
            cores,
            self.names,
            kv_tokens=profile.kv_tokens,
            sharing=seam.sharing,
            seed=self.seed,
            weather=seam.weather,
        )

    def core(self, seam: Seam) -> Any:
        """One more of the seam's cores, told of the engines of the beginning."""
        profile = self.profile
        info = {
            "n": self.engines,
            "live": self.names,
            "block_tokens": TRACE_BLOCK_TOKENS,
            "ttft_slo": self.objectives.ttft_limit(0.0),
            "prefill_s_per_token": profile.prefill_token_seconds,
            "kv_tokens": profile.kv_tokens,
            "max_seqs": profile.max_sequences,
            "step_tokens": profile.step_tokens,
        }
        return seam.core(info, self.preset, self.seed)

    def _course(
        self, requests: Sequence[TraceRequest], prompts: Prompts | None, judge: Judge | None
    ) -> tuple[list[Served], OneRouter | Outside | LeastQueued]:
        shared = prompts or self.prompts()
        front = LeastQueued(self.names, self.profile, shared) if self.pooled else self.front(shared)
        course = Course(
            front,
            self.names,
            self.profile,
            block_tokens=TRACE_BLOCK_TOKENS,
            events=self.seam is not None and self.seam.sharing is not None,
            prompts=shared,
            watch=judge,
            pooled=self.pooled,
        )
        play(self.script, course)
        return course.serve(requests), front

    def _one(self, names: list[str], prompts: Prompts) -> OneRouter:
        model = self._model
        router = ModelRouter(secret=self._secret, seed=self.seed)
        router.update(model, instances_of(names, self.profile), 1)
        return OneRouter(router, prompts.chain, {}, model, self.profile)

    @property
    def _model(self) -> Model:
        return Model(NAMESPACE, MODEL, self.objectives, self.preset)

    @property
    def _secret(self) -> bytes:
        return f"secret {self.seed}".encode()


def seeded(trial: Trial, seed: int) -> Trial:
    """The same from another seed."""
    return replace(trial, seed=seed)
