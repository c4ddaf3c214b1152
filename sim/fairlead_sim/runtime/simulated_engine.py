"""One simulated engine: cores, drivers, models, and every request in it.

A request is admitted or rejected as by the real engine. Its choices get scripts and are submitted
to the core of one data-parallel rank, or wait while the engine is paused. Sleep, pause, drain and
abort of a control plane act here.

The parts of an engine, built from its settings: cores, event publishers and metrics.

The sleep mode of a simulated engine, as in vLLM.

Level 1 keeps the weights in host memory, level 2 drops them; both drop the KV cache. A wake-up
restores all parts or the named ones, and the engine sleeps until it has all. After level 2 the
weights' memory is empty: until ``reload_weights`` an awake engine answers nonsense without an
error.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from random import Random

import zmq

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_sim.engine.block_pool import block_keys, chain_root
from fairlead_sim.engine.kv_event_publisher import AdapterIds, KvEventPublisher
from fairlead_sim.engine.metrics import EngineFacts, EngineMetrics
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence, EngineStats, QueueFull
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.generation import reply_script
from fairlead_sim.generation.markup_writer import Draws, MarkupWriter, SeededDraws, greedy_draws
from fairlead_sim.generation.reply_script import GreedyDecoder
from fairlead_sim.generation.requests import GenerationRequest, PromptParser, TokenizedPrompt, validate_prompts
from fairlead_sim.generation.responses import GenerationResponse, ResponseChoice, ResponseHost
from fairlead_sim.http.connection import ResponseWriter
from fairlead_sim.http.errors import (
    CORE_DIED_MESSAGE,
    DRAINING_MESSAGE,
    DropConnection,
    EngineBusy,
    InternalError,
    InvalidRequest,
)
from fairlead_sim.kv_transfer.connector import MAX_WRONG_KV_TOKENS, WRONG_KV_TEXT, KvConnector
from fairlead_sim.runtime.fault_injection import Fault, FaultInjector
from fairlead_sim.runtime.lora_adapters import ServedModels
from fairlead_sim.runtime.realtime_driver import RealtimeDriver
from fairlead_sim.runtime.settings import EngineSettings

ZmqContext = zmq.Context[zmq.Socket[bytes]]

MEMORY_PARTS = frozenset({"weights", "kv_cache"})
Schedule = Callable[[float, Callable[[], None]], object]

ResponseKind = Callable[[ResponseHost, GenerationRequest, ResponseWriter], GenerationResponse]


@dataclass(frozen=True, slots=True)
class EngineResources:
    """The resources that the engines of one process share.

    zmq_context: None: each publisher makes its own.
    """

    clock: Clock
    random: Random
    tokenizer: Tokenizer
    lag: LoopLag | None = None
    zmq_context: ZmqContext | None = None


def build_cores(settings: EngineSettings, profile: EngineProfile) -> list[EngineCore]:
    """Returns a core per data-parallel rank; ``profile`` already has the engine's speed."""
    return [
        EngineCore(
            profile,
            block_tokens=settings.block_tokens,
            scheduling=settings.scheduling,
            events=settings.kv_events.endpoint is not None,
        )
        for _ in range(settings.data_parallel)
    ]


def build_publishers(
    settings: EngineSettings, resources: EngineResources, *, port: int, adapter_id: AdapterIds
) -> list[KvEventPublisher]:
    """Returns a publisher per rank; an empty list without a KV-event endpoint.

    The default topic names the engine's own address.
    """
    events = settings.kv_events
    if events.endpoint is None:
        return []
    topic = f"kv@127.0.0.1:{port}@{settings.served_names[0]}" if events.topic is None else events.topic
    return [
        KvEventPublisher(
            replace(events, topic=topic),
            clock=resources.clock,
            rank=rank,
            adapter_id=adapter_id,
            context=resources.zmq_context,
        )
        for rank in range(settings.data_parallel)
    ]


def build_metrics(settings: EngineSettings, built: list[EngineCore], resources: EngineResources) -> EngineMetrics:
    """Returns the metrics page over all ranks."""
    tokens = built[0].max_sequence_tokens
    facts = EngineFacts(
        settings.served_names[0],
        settings.max_model_len,
        {
            "block_size": settings.block_tokens,
            "effective_attention_block_size": settings.block_tokens,
            "num_gpu_blocks": built[0].pool.blocks,
            "kv_cache_size_tokens": tokens,
            "kv_cache_max_concurrency": round(tokens / settings.max_model_len, 2),
        },
        settings.max_adapters,
    )
    stats = [functools.partial(_stats, core) for core in built]
    return EngineMetrics(facts, stats, clock=resources.clock, lag=resources.lag)


def shift_event_ports(settings: EngineSettings, offset: int) -> EngineSettings:
    """Returns the settings of engine number ``offset`` in one process, with fixed event ports moved
    up.
    """
    events = settings.kv_events
    ports = offset * settings.data_parallel
    shifted = replace(
        events, endpoint=_shift_port(events.endpoint, ports), replay_endpoint=_shift_port(events.replay_endpoint, ports)
    )
    return replace(settings, kv_events=shifted)


def _shift_port(endpoint: str | None, ports: int) -> str | None:
    if endpoint is None or endpoint.endswith(":0"):
        return endpoint
    base, colon, port = endpoint.rpartition(":")
    return f"{base}{colon}{int(port) + ports}" if port.isdecimal() else endpoint


def _stats(core: EngineCore) -> EngineStats:
    return core.stats


class SleepMode:
    """The sleep state of one engine.

    - level: None while awake.
    - weights_missing: the weights were dropped and not loaded again.
    """

    def __init__(
        self, wake_seconds: float, reload_seconds: float, schedule: Schedule, on_woken: Callable[[], None]
    ) -> None:
        self.level: int | None = None
        self.weights_missing = False
        self._wake_seconds = wake_seconds
        self._reload_seconds = reload_seconds
        self._schedule = schedule
        self._on_woken = on_woken
        self._missing_parts: frozenset[str] = frozenset()
        self._sleep_count = 0

    def fall_asleep(self, level: int) -> None:
        self._sleep_count += 1
        self.level = level
        self._missing_parts = MEMORY_PARTS if level >= 1 else frozenset()
        self.weights_missing = self.weights_missing or level == 2

    def wake_up(self, parts: frozenset[str], done: Callable[[], None]) -> None:
        """Restores ``parts`` and then calls ``done``. An engine that has all parts resumes.

        An engine that fell asleep meanwhile stays asleep.
        """
        falls, slow = self._sleep_count, self.level == 1 and "weights" in parts & self._missing_parts

        def back() -> None:
            if falls == self._sleep_count:
                self._missing_parts -= parts
                if not self._missing_parts:  # also for an engine that did not sleep: paused requests continue
                    self.level = None
                    self._on_woken()
            done()

        self._call_after(self._wake_seconds if slow else 0.0, back)

    def reload_weights(self, done: Callable[[], None]) -> None:
        """Loads the weights and then calls ``done``."""
        falls = self._sleep_count

        def loaded() -> None:
            self.weights_missing = self.weights_missing and falls != self._sleep_count
            done()

        self._call_after(self._reload_seconds, loaded)

    def _call_after(self, seconds: float, call: Callable[[], None]) -> None:
        if seconds > 0.0:
            self._schedule(seconds, call)
        else:
            call()


class SimulatedEngine:
    """The state of one engine; create it on a running loop.

    on_death: called shortly after the core crashed, and by a fault that ends the engine.
    """

    def __init__(
        self,
        settings: EngineSettings,
        resources: EngineResources,
        *,
        port: int = 0,
        on_death: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.tokenizer = resources.tokenizer
        self.random = resources.random
        self.clock = resources.clock
        self.models = ServedModels(settings)
        self.parses_reasoning = settings.surface.reasoning_parser
        self.parses_tools = settings.surface.auto_tool_choice
        self.prompt_parser = PromptParser(
            self.tokenizer,
            settings.max_model_len,
            self.models.resolve,
            self.parses_tools,
            self.parses_reasoning,
        )
        self.fingerprint = settings.fingerprint
        self.block_tokens = settings.block_tokens
        self.reports_details = settings.surface.prompt_tokens_details
        self.responses: set[GenerationResponse] = set()
        self.is_draining = False
        self.is_core_dead = False
        self.is_paused = False
        self.sleep_mode = SleepMode(
            settings.wake_seconds / settings.speed,
            settings.reload_seconds / settings.speed,
            asyncio.get_running_loop().call_later,
            self._on_woken,
        )
        self._held_choices: list[ResponseChoice] = []
        self._on_idle: list[Callable[[], None]] = []
        self._on_empty: Callable[[], None] | None = None
        self._ids = count()
        self._base_profile = settings.profile.sped_up(settings.speed)
        self.publishers = build_publishers(settings, resources, port=port, adapter_id=self.models.adapter_number)
        cores = build_cores(settings, self._base_profile)
        self.metrics = build_metrics(settings, cores, resources)
        self.drivers = [
            RealtimeDriver(
                core,
                rank=rank,
                observer=self.metrics,
                publish=self.publishers[rank].publish if self.publishers else None,
            )
            for rank, core in enumerate(cores)
        ]
        self.fault_injector = FaultInjector(
            Random(settings.seed),
            schedule=asyncio.get_running_loop().call_later,
            set_slowdown=self._set_slowdown,
            set_core_hung=self._set_core_hung,
            kill_core=self.kill_core,
            exit_engine=on_death,
        )
        self._on_death = on_death
        self.kv_connector: KvConnector | None = None
        if settings.kv_transfer.connector != "none":
            self.kv_connector = KvConnector(
                settings.kv_transfer, cores=cores, speed=settings.speed, random=self.random, port=port, host=self
            )
        for publisher in self.publishers:
            publisher.start()

    def call_after(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls `call` after so many seconds at speed 1; at once if they are 0."""
        if seconds > 0.0:
            asyncio.get_running_loop().call_later(seconds / self.settings.speed, call)
        else:
            call()

    # Generating ----------------------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        return sum(driver.unfinished for driver in self.drivers) + len(self._held_choices)

    def begin(
        self,
        request: GenerationRequest,
        kind: ResponseKind,
        writer: ResponseWriter,
        fault: Fault | None = None,
    ) -> None:
        """Starts one response.

        Raises InvalidRequest, InternalError (core crashed, draining) or DropConnection before
        anything is sent. A full queue fails the response.
        """
        settings = self.settings
        if request.rank is not None and request.rank >= settings.data_parallel:
            raise InvalidRequest(f"data_parallel_rank {request.rank} is out of range [0, {settings.data_parallel}).")
        validate_prompts(request, settings.max_model_len, self.tokenizer.vocab_size)
        full = self._exceeded_queue_limit(request)
        if self.is_core_dead:
            raise InternalError(CORE_DIED_MESSAGE)
        if self.is_draining and not full:
            if any(prompt.is_token_ids for prompt in request.prompts):
                raise DropConnection("the real engine drops these connections while it drains")
            writer.close_after()
            raise InternalError(DRAINING_MESSAGE)
        if request.load_metrics_format and not request.stream:
            writer.extra_headers = self._load_header(request.load_metrics_format)
        response = kind(self, request, writer)
        if fault is not None and fault.kind == "cut":
            response.cut_after = fault.after
        response.start()
        if full:
            self.metrics.count_rejection(full)
            writer.on_gone = None
            response.send_error(EngineBusy())
            return
        self.responses.add(response)
        if self.kv_connector is None or not self.kv_connector.take_over(response):
            self.start(response)

    def start(self, response: GenerationResponse, *, pulled: int = 0, is_wrong: bool = False) -> None:
        """Starts the choices of a response.

        - pulled: prompt tokens whose KV was pulled.
        - is_wrong: that KV belongs to another prompt.
        """
        request = response.request
        rank = self._pick_rank(request)
        response.choices = [
            self._build_choice(response, at * request.n + number, prompt, rank, wrong=is_wrong)
            for at, prompt in enumerate(request.prompts)
            for number in range(request.n)
        ]
        if pulled:
            for choice in response.choices:
                choice.sequence.pulled_tokens = min(pulled, choice.sequence.prompt_tokens)
        for choice in response.choices:
            if response in self.responses:  # the response fails as a whole if a choice is rejected
                self._submit(choice)

    def compute(self, response: GenerationResponse, prompts: list[TokenizedPrompt]) -> None:
        """Starts a response that only computes its prompts (embeddings)."""
        self.responses.add(response)
        rank = self._pick_rank(response.request)
        nothing = reply_script.ReplyScript([], b"", "stop")
        response.choices = [
            ResponseChoice(response, at, prompt, nothing, self._sequence(response.request, prompt, (), 0))
            for at, prompt in enumerate(prompts)
        ]
        for choice in response.choices:
            choice.rank = rank
            self._submit(choice)

    def block_keys(self, request: GenerationRequest, prompt: TokenizedPrompt) -> tuple[int, ...]:
        name = None if request.adapter is None else f"{request.adapter.name}\0{request.adapter.path}"
        return block_keys(prompt.tokens, self.block_tokens, salt=request.cache_salt, adapter=name)

    def _build_choice(
        self, response: GenerationResponse, index: int, prompt: TokenizedPrompt, rank: int, *, wrong: bool = False
    ) -> ResponseChoice:
        request = response.request
        name = None if request.adapter is None else f"{request.adapter.name}\0{request.adapter.path}"
        keys = self.block_keys(request, prompt)
        rest = prompt.tokens[len(keys) * self.block_tokens :]
        seed = f"{self.settings.seed if request.seed is None else request.seed}/{keys[-1] if keys else name}/{rest}/{index}"
        wish = request.reply_limits(prompt, self.settings.max_model_len, self.settings.answer_length)
        plan = request.markup_plan(self.settings.reply_markup)
        if (
            wrong
            or self.sleep_mode.weights_missing
            or (self.kv_connector is not None and self.kv_connector.is_spoilt(rank, keys))
        ):
            wish = replace(wish, forced_text=WRONG_KV_TEXT * min(wish.max_tokens, MAX_WRONG_KV_TOKENS))
            plan = None
        if plan is not None:
            draws = self._markup_draws(request, name, seed)
            script = MarkupWriter(self.tokenizer, plan, wish, prompt.tokens, draws).write()
        else:
            if request.is_greedy:
                wish = replace(wish, greedy_decoder=self._greedy_decoder(request, keys, rest))
            script = reply_script.write_script(self.tokenizer, seed, wish)
        sequence = self._sequence(request, prompt, keys, len(script.ids))
        # All ids of the script at once: the core reads them up to its position.
        sequence.tokens = prompt.tokens + script.ids
        choice = response.choice_kind(response, index, prompt, script, sequence)
        choice.rank = rank
        return choice

    def _markup_draws(
        self, request: GenerationRequest, adapter: str | None, seed: str
    ) -> Callable[[Sequence[int]], Draws]:
        if request.is_greedy:
            return greedy_draws(
                salt=request.cache_salt, adapter=adapter, block_tokens=self.block_tokens, seed=self.settings.seed
            )
        return lambda _: SeededDraws(seed)

    def _greedy_decoder(
        self, request: GenerationRequest, keys: tuple[int, ...], rest: list[int]
    ) -> Callable[..., tuple[list[int], bool]]:
        name = None if request.adapter is None else f"{request.adapter.name}\0{request.adapter.path}"
        root = chain_root(salt=request.cache_salt, adapter=name)
        decoder = GreedyDecoder(self.tokenizer, self.block_tokens, self.settings.seed)
        return partial(decoder.decode, keys[-1] if keys else root, rest)

    def _sequence(
        self, request: GenerationRequest, prompt: TokenizedPrompt, keys: tuple[int, ...], max_tokens: int
    ) -> EngineSequence:
        return EngineSequence(
            id=f"{request.request_id}-{next(self._ids)}",
            arrival=time.monotonic(),
            prompt_tokens=len(prompt.tokens),
            max_tokens=max_tokens,
            keys=keys,
            tokens=prompt.tokens,
            priority=request.priority,
            adapter=None if request.adapter is None else request.adapter.name,
            salt=request.cache_salt,
            session=request.session,
            reserve_tokens=None if self.settings.reserve_output else 0,
            uses_cache=request.uses_cache,
            publishes_hits=request.publishes_hits,
        )

    def _submit(self, choice: ResponseChoice) -> None:
        if self.is_paused:
            self._held_choices.append(choice)
            return
        try:
            self.drivers[choice.rank].submit(choice)
        except QueueFull:
            choice.response.fail(EngineBusy())
        except BadInput as error:
            choice.response.fail(InvalidRequest(error.message))

    def _pick_rank(self, request: GenerationRequest) -> int:
        if request.rank is not None:
            return request.rank
        return min(self.drivers, key=lambda driver: driver.unfinished).rank

    def _exceeded_queue_limit(self, request: GenerationRequest) -> str | None:
        """Returns the metric label of the queue limit that this request would exceed, or None."""
        settings = self.settings
        if settings.max_queued_requests is not None and self.unfinished >= settings.max_queued_requests:
            return "max_num_queued_reqs"
        if settings.max_queued_tokens is not None:
            inside = sum(response.prompt_tokens for response in self.responses)
            if inside + sum(len(prompt.tokens) for prompt in request.prompts) > settings.max_queued_tokens:
                return "max_num_queued_tokens"
        return None

    def _load_header(self, form: str) -> bytes:
        """Returns the load header of plain responses in the requested form, JSON or TEXT.

        Other forms give an empty header.
        """
        stats = [driver.core.stats for driver in self.drivers]
        waiting = float(sum(core_stats.waiting for core_stats in stats))
        usage = max(core_stats.kv_usage for core_stats in stats)
        if form.upper() == "JSON":
            named = f'{{"num_requests_waiting": {waiting}, "kv_cache_usage_perc": {usage}}}'
            return f'endpoint-load-metrics: JSON {{"named_metrics": {named}}}\r\n'.encode()
        if form.upper() == "TEXT":
            named = f"named_metrics.num_requests_waiting={waiting}, named_metrics.kv_cache_usage_perc={usage}"
            return f"endpoint-load-metrics: TEXT {named}\r\n".encode()
        return b""

    # ResponseHost --------------------------------------------------------------------------------------

    def unix_seconds(self) -> int:
        return int(self.clock.wall())

    def new_id(self) -> str:
        return f"{self.random.getrandbits(62) | 1 << 63:016x}"

    def transfer_params(self, response: GenerationResponse) -> dict[str, object] | None:
        """Leases the prompt's blocks if the request demands it.

        Returns what the client must pass to the decode engine; None if there is nothing to pass.
        """
        return None if self.kv_connector is None else self.kv_connector.grant_lease(response)

    def drop_choice(self, choice: ResponseChoice) -> None:
        """Removes a choice's sequence from its core, or from those that wait for a resume."""
        if choice in self._held_choices:
            self._held_choices.remove(choice)
        else:
            self.drivers[choice.rank].abort(choice.sequence.id)

    def on_response_ended(self, response: GenerationResponse, outcome: str) -> None:
        """Removes a response, and calls what waits for an idle or empty engine.

        Aborted responses are counted, those of disconnected clients are not.
        """
        self.responses.discard(response)
        if self.kv_connector is not None:
            self.kv_connector.on_response_ended(response, outcome)
        if outcome == "aborted":
            for choice in response.choices:
                if choice.reason == "abort":
                    self.metrics.observe_finished(choice.rank, choice.sequence, "abort", time.monotonic())
        if self._on_idle and not any(driver.unfinished for driver in self.drivers):
            calls, self._on_idle = self._on_idle, []
            for call in calls:
                call()
        if self._on_empty is not None and not self.responses:
            call, self._on_empty = self._on_empty, None
            call()

    # Control ---------------------------------------------------------------------------------------------

    def abort_responses(self, names: "set[str] | None" = None) -> None:
        """Ends the named responses, or all, with the finish reason ``abort``."""
        for response in list(self.responses):
            if names is None or names & {response.id, response.request.request_id}:
                response.abort()

    def pause(self, mode: str, done: Callable[[], None]) -> None:
        """Pauses the engine: ``abort`` ends what runs, ``wait`` lets it end, ``keep`` freezes it.

        New requests wait. ``done`` is called when the engine is paused.
        """
        self.is_paused = True
        if mode == "keep":
            for driver in self.drivers:
                driver.pause()
            done()
        elif mode == "wait":
            self.call_when_idle(done)
        else:
            self.abort_responses()
            done()

    def resume(self) -> None:
        """Continues frozen and waiting requests."""
        self.is_paused = False
        choices, self._held_choices = self._held_choices, []
        for driver in self.drivers:
            driver.resume()
        for choice in choices:
            self._submit(choice)

    def call_when_idle(self, call: Callable[[], None]) -> None:
        """Calls ``call`` when nothing runs or waits in the cores, perhaps now."""
        if any(driver.unfinished for driver in self.drivers):
            self._on_idle.append(call)
        else:
            call()

    def call_when_empty(self, call: Callable[[], None]) -> None:
        """Calls ``call`` after the last response, including those that wait for a resume."""
        if self.responses:
            self._on_empty = call
        else:
            call()

    def sleep(self, level: int, mode: str, done: Callable[[], None]) -> None:
        """Pauses and sleeps, then calls ``done``; from level 1 on the KV cache is lost."""

        def asleep() -> None:
            self.sleep_mode.fall_asleep(level)
            self.metrics.set_sleep_level(level)
            if level >= 1:
                self.reset_prefix_cache()
            done()

        self.pause(mode, asleep)

    def _on_woken(self) -> None:
        self.metrics.set_sleep_level(None)
        self.resume()

    def reset_prefix_cache(self, *, preempt_running: bool = False) -> bool:
        done = [driver.core.reset_prefix_cache(preempt_running=preempt_running) for driver in self.drivers]
        return all(done)

    def kill_core(self) -> None:
        """Kills the engine core: all responses fail, then the server exits."""
        self.is_core_dead = True
        for driver in self.drivers:
            driver.stop()
        for response in list(self.responses):
            response.fail(InternalError(CORE_DIED_MESSAGE))
        asyncio.get_running_loop().call_later(0.05, self._on_death)

    def stop(self) -> None:
        """Stops steps, transfers and events."""
        for driver in self.drivers:
            driver.stop()
        if self.kv_connector is not None:
            self.kv_connector.close()
        for publisher in self.publishers:
            publisher.close()

    def _set_slowdown(self, factor: float) -> None:
        for driver in self.drivers:
            driver.core.profile = self._base_profile.sped_up(1.0 / factor)

    def _set_core_hung(self, hung: bool) -> None:
        for driver in self.drivers:
            driver.set_hung(hung)
