"""One simulated engine: its cores and their drivers, its models, and every request inside it.

A generating request goes: admitted (or refused as the real engine does) → its choices scripted → submitted to the core of one
data-parallel rank, or held back while the engine is paused → settled. Everything that a control plane can do to an engine
(sleep, pause, drain, abort) acts here.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from random import Random

from fairlead.clock import Clock
from fairlead.errors import BadInput
from fairlead.lag import LoopLag
from fairlead_sim.blocks import block_keys, chain_root
from fairlead_sim.engine import QueueFull, Sequence
from fairlead_sim.server import parts, scripts
from fairlead_sim.server.adapters import Models
from fairlead_sim.server.answers import Answer, Choice
from fairlead_sim.server.asks import Ask, Prompt, fits
from fairlead_sim.server.connection import Reply
from fairlead_sim.server.driver import Driver
from fairlead_sim.server.faults import Fault, Faults
from fairlead_sim.server.greedy import go_on
from fairlead_sim.server.problems import CORE_DIED, DRAINING, Broken, Busy, Refused, Vanish
from fairlead_sim.server.prompts import Frontend
from fairlead_sim.server.settings import EngineSettings
from fairlead_sim.server.slumber import Slumber
from fairlead_sim.server.transfer import WRONG_TEXT, WRONG_TOKENS, Transfer
from fairlead_sim.tokenizer import Tokenizer


class Engine:
    """The state of one engine; build it on a running loop. ``die`` is what its death does (leave the process, by default)."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        tokenizer: Tokenizer,
        clock: Clock,
        random: Random,
        port: int = 0,
        lag: LoopLag | None = None,
        context: parts.Context | None = None,
        die: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.random = random
        self.clock = clock
        self.models = Models(settings)
        self.frontend = Frontend(
            tokenizer, settings.max_model_len, self.models.resolve, settings.surface.auto_tool_choice
        )
        self.fingerprint = settings.fingerprint
        self.block_tokens = settings.block_tokens
        self.details = settings.surface.prompt_tokens_details
        self.answers: set[Answer] = set()
        self.draining = False
        self.core_dead = False
        self.paused = False
        self.slumber = Slumber(
            settings.wake_seconds / settings.speed,
            settings.reload_seconds / settings.speed,
            asyncio.get_running_loop().call_later,
            self._woken,
        )
        self._held: list[Choice] = []
        self._idle_calls: list[Callable[[], None]] = []
        self._empty_call: Callable[[], None] | None = None
        self._ids = count()
        self._base_profile = settings.profile.faster(settings.speed)
        self.publishers = parts.publishers(
            settings, port=port, clock=clock, adapter_id=self.models.number, context=context
        )
        cores = parts.cores(settings, self._base_profile)
        self.metrics = parts.metrics(settings, cores, clock, lag)
        self.drivers = [
            Driver(
                core,
                rank=rank,
                observer=self.metrics,
                publish=self.publishers[rank].publish if self.publishers else None,
            )
            for rank, core in enumerate(cores)
        ]
        self.faults = Faults(
            Random(settings.seed),
            later=asyncio.get_running_loop().call_later,
            slow=self._slow,
            core_dead=self.kill_core,
            leave=die,
        )
        self._die = die
        self.transfer: Transfer | None = None
        if settings.kv_transfer.connector != "none":
            self.transfer = Transfer(settings, cores=cores, random=random, port=port, starter=self)
        for publisher in self.publishers:
            publisher.start()

    # Generating ----------------------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """Sequences running, waiting or held."""
        return sum(driver.unfinished for driver in self.drivers) + len(self._held)

    def begin(self, ask: Ask, kind: type[Answer], reply: Reply, fault: Fault | None = None) -> None:
        """Start one answer. Raises Refused before anything was sent; a full queue is told through the answer."""
        settings = self.settings
        if ask.rank is not None and ask.rank >= settings.data_parallel:
            raise Refused(f"data_parallel_rank {ask.rank} is out of range [0, {settings.data_parallel}).")
        fits(ask, settings.max_model_len, self.tokenizer.vocab_size)
        full = self._full(ask)
        if self.core_dead:
            raise Broken(CORE_DIED)
        if self.draining and not full:
            if any(prompt.given for prompt in ask.prompts):
                raise Vanish("the real engine drops these connections while it drains")
            reply.last()
            raise Broken(DRAINING)
        if ask.orca and not ask.stream:
            reply.before = self._orca(ask.orca)
        answer = kind(self, ask, reply)
        if fault is not None and fault.kind == "cut":
            answer.cut_after = fault.after
        answer.open()
        if full:
            self.metrics.rejected(full)
            reply.on_gone = None
            reply.fail(Busy())
            return
        self.answers.add(answer)
        if self.transfer is None or not self.transfer.takes(answer):
            self.start(answer)

    def start(self, answer: Answer, *, pulled: int = 0, wrong: bool = False) -> None:
        """Let an answer's choices run. ``pulled``: the KV of so many of the prompt's tokens came from elsewhere; ``wrong``: it was
        another prompt's."""
        ask = answer.ask
        rank = self._rank(ask)
        answer.choices = [
            self._choice(answer, at * ask.n + number, prompt, rank, wrong=wrong)
            for at, prompt in enumerate(ask.prompts)
            for number in range(ask.n)
        ]
        if pulled:
            for choice in answer.choices:
                choice.sequence.pulled_tokens = min(pulled, choice.sequence.prompt_tokens)
        for choice in answer.choices:
            if answer in self.answers:  # it fails as a whole when one of its choices is refused
                self._submit(choice)

    def compute(self, answer: Answer, prompts: list[Prompt]) -> None:
        """Start an answer whose prompts are only computed (embeddings)."""
        self.answers.add(answer)
        rank = self._rank(answer.ask)
        nothing = scripts.Script([], b"", "stop")
        answer.choices = [
            Choice(answer, at, prompt, nothing, self._sequence(answer.ask, prompt, (), 0))
            for at, prompt in enumerate(prompts)
        ]
        for choice in answer.choices:
            choice.rank = rank
            self._submit(choice)

    def keys(self, ask: Ask, prompt: Prompt) -> tuple[int, ...]:
        """The keys of the prompt's full blocks."""
        name = None if ask.adapter is None else f"{ask.adapter.name}\0{ask.adapter.path}"
        return block_keys(prompt.tokens, self.block_tokens, salt=ask.salt, adapter=name)

    def _choice(self, answer: Answer, index: int, prompt: Prompt, rank: int, *, wrong: bool = False) -> Choice:
        ask = answer.ask
        name = None if ask.adapter is None else f"{ask.adapter.name}\0{ask.adapter.path}"
        keys = self.keys(ask, prompt)
        rest = prompt.tokens[len(keys) * self.block_tokens :]
        seed = f"{self.settings.seed if ask.seed is None else ask.seed}/{keys[-1] if keys else name}/{rest}/{index}"
        wish = ask.wish(prompt, self.settings.max_model_len)
        if wrong or self.slumber.hollow or (self.transfer is not None and self.transfer.spoilt(rank, keys)):
            wish = replace(wish, forced=WRONG_TEXT * min(wish.max_tokens, WRONG_TOKENS))
        if ask.greedy:
            wish = replace(wish, greedy=self._greedy(ask, keys, rest))
        script = scripts.write(self.tokenizer, seed, wish)
        sequence = self._sequence(ask, prompt, keys, len(script.ids))
        # The ids of the whole script at once: the core reads them by place, as far as it has come.
        sequence.tokens = prompt.tokens + script.ids
        choice = answer.choice_kind(answer, index, prompt, script, sequence)
        choice.rank = rank
        return choice

    def _greedy(self, ask: Ask, keys: tuple[int, ...], rest: list[int]) -> Callable[..., tuple[list[int], bool]]:
        name = None if ask.adapter is None else f"{ask.adapter.name}\0{ask.adapter.path}"
        root = chain_root(salt=ask.salt, adapter=name)
        say = partial(go_on, self.tokenizer, keys, rest, block_tokens=self.block_tokens, root=root)
        return lambda count, least: say(count, seed=self.settings.seed, least=least)

    def _sequence(self, ask: Ask, prompt: Prompt, keys: tuple[int, ...], max_tokens: int) -> Sequence:
        return Sequence(
            id=f"{ask.request_id}-{next(self._ids)}",
            arrival=time.monotonic(),
            prompt_tokens=len(prompt.tokens),
            max_tokens=max_tokens,
            keys=keys,
            tokens=prompt.tokens,
            priority=ask.priority,
            adapter=None if ask.adapter is None else ask.adapter.name,
            salt=ask.salt,
            session=ask.session,
            reserve_tokens=None if self.settings.reserve_output else 0,
            lookup=ask.lookup,
            announce_hits=ask.announce_hits,
        )

    def _submit(self, choice: Choice) -> None:
        if self.paused:
            self._held.append(choice)
            return
        try:
            self.drivers[choice.rank].submit(choice)
        except QueueFull:
            choice.answer.fail(Busy())
        except BadInput as error:
            choice.answer.fail(Refused(error.message))

    def _rank(self, ask: Ask) -> int:
        if ask.rank is not None:
            return ask.rank
        return min(self.drivers, key=lambda driver: driver.unfinished).rank

    def _full(self, ask: Ask) -> str | None:
        """The limit that this request would pass, by its name in the metrics; all unfinished requests count."""
        settings = self.settings
        if settings.max_queued_requests is not None and self.unfinished >= settings.max_queued_requests:
            return "max_num_queued_reqs"
        if settings.max_queued_tokens is not None:
            inside = sum(answer.prompt_tokens for answer in self.answers)
            if inside + sum(len(prompt.tokens) for prompt in ask.prompts) > settings.max_queued_tokens:
                return "max_num_queued_tokens"
        return None

    def _orca(self, form: str) -> bytes:
        """The load header on plain answers, for those who ask for it."""
        stats = [driver.core.stats for driver in self.drivers]
        waiting = float(sum(each.waiting for each in stats))
        usage = max(each.kv_usage for each in stats)
        if form.upper() == "JSON":
            named = f'{{"num_requests_waiting": {waiting}, "kv_cache_usage_perc": {usage}}}'
            return f'endpoint-load-metrics: JSON {{"named_metrics": {named}}}\r\n'.encode()
        if form.upper() == "TEXT":
            named = f"named_metrics.num_requests_waiting={waiting}, named_metrics.kv_cache_usage_perc={usage}"
            return f"endpoint-load-metrics: TEXT {named}\r\n".encode()
        return b""

    # What answers ask of their engine --------------------------------------------------------------------------------------

    def stamp(self) -> int:
        """Unix seconds."""
        return int(self.clock.wall())

    def handed_over(self, answer: Answer) -> dict[str, object] | None:
        """What the client must tell the engine that is to decode; None when nothing is kept for it."""
        return None if self.transfer is None else self.transfer.handed_over(answer)

    def drop(self, choice: Choice) -> None:
        """Take a choice's sequence out of its core."""
        if choice in self._held:
            self._held.remove(choice)
        else:
            self.drivers[choice.rank].abort(choice.sequence.id)

    def settled(self, answer: Answer, outcome: str) -> None:
        """An answer is over; those that were aborted here are counted, clients that left are not."""
        self.answers.discard(answer)
        if self.transfer is not None:
            self.transfer.settled(answer, outcome)
        if outcome == "aborted":
            for choice in answer.choices:
                if choice.reason == "abort":
                    self.metrics.finished(choice.rank, choice.sequence, "abort", time.monotonic())
        if self._idle_calls and not any(driver.unfinished for driver in self.drivers):
            calls, self._idle_calls = self._idle_calls, []
            for call in calls:
                call()
        if self._empty_call is not None and not self.answers:
            call, self._empty_call = self._empty_call, None
            call()

    # What a control plane does ---------------------------------------------------------------------------------------------

    def abort_answers(self, names: "set[str] | None" = None) -> None:
        """End the named answers, or all, with finish reason ``abort``."""
        for answer in list(self.answers):
            if names is None or names & {answer.id, answer.ask.request_id}:
                answer.abort()

    def pause(self, mode: str, done: Callable[[], None]) -> None:
        """``abort`` ends what runs, ``wait`` lets it end, ``keep`` freezes it; new requests are held. ``done`` follows."""
        self.paused = True
        if mode == "keep":
            for driver in self.drivers:
                driver.pause()
            done()
        elif mode == "wait":
            self.when_idle(done)
        else:
            self.abort_answers()
            done()

    def resume(self) -> None:
        """Go on, with what was frozen and what was held."""
        self.paused = False
        held, self._held = self._held, []
        for driver in self.drivers:
            driver.resume()
        for choice in held:
            self._submit(choice)

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call when nothing runs or waits in the cores, perhaps at once."""
        if any(driver.unfinished for driver in self.drivers):
            self._idle_calls.append(call)
        else:
            call()

    def when_empty(self, call: Callable[[], None]) -> None:
        """Call when the last answer is over, held ones included."""
        if self.answers:
            self._empty_call = call
        else:
            call()

    def sleep(self, level: int, mode: str, done: Callable[[], None]) -> None:
        """Pause; from level 1 on the KV cache is lost."""

        def asleep() -> None:
            self.slumber.fall(level)
            self.metrics.sleeping(level)
            if level >= 1:
                self.reset_prefix_cache()
            done()

        self.pause(mode, asleep)

    def _woken(self) -> None:
        """Awake and running."""
        self.metrics.sleeping(None)
        self.resume()

    def reset_prefix_cache(self, *, preempt_running: bool = False) -> bool:
        """Forget cached blocks at every rank; False where something runs."""
        done = [driver.core.reset_prefix_cache(preempt_running=preempt_running) for driver in self.drivers]
        return all(done)

    def kill_core(self) -> None:
        """The engine core is dead: errors in every answer, then the server leaves by itself."""
        self.core_dead = True
        for driver in self.drivers:
            driver.stop()
        for answer in list(self.answers):
            answer.fail(Broken(CORE_DIED))
        asyncio.get_running_loop().call_later(0.05, self._die)

    def stop(self) -> None:
        """No more steps, no more events."""
        for driver in self.drivers:
            driver.stop()
        if self.transfer is not None:
            self.transfer.close()
        for publisher in self.publishers:
            publisher.close()

    def _slow(self, factor: float) -> None:
        for driver in self.drivers:
            driver.core.profile = self._base_profile.faster(1.0 / factor)
