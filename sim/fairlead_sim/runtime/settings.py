"""The settings of a simulated engine, named like vLLM's flags."""

import hashlib
from dataclasses import dataclass, field, replace

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead_sim.engine.kv_event_publisher import KvEventsSettings
from fairlead_sim.kv_transfer.connector import KvTransferSettings

VERSION = "0.32.0"


@dataclass(frozen=True, slots=True)
class ApiSurface:
    """The enabled parts of the HTTP surface. A bare vLLM has most of them off; here most are on."""

    prompt_tokens_details: bool = True
    request_id_headers: bool = True
    server_load_tracking: bool = True
    scale_out: bool = True
    dev_mode: bool = True
    runtime_lora: bool = True
    tokenizer_info: bool = True
    auto_tool_choice: bool = True
    reasoning_parser: bool = False
    response_store: bool = False


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings of one engine without its port.

    - served_names: responses carry the first.
    - answer_length: factor on the length of answers that end naturally.
    - reply_markup: the share of replies to requests with tools that end in calls; with a reasoning
      parser, replies begin with reasoning. None: replies have no markup by themselves.
    - wake_seconds: load time of weights from host memory (sleep level 1).
    - max_loaded_adapters: more are refused; None: any number, as in vLLM.
    - adapter_load_seconds: time until a load of an adapter is answered.
    - reload_seconds: load time by ``reload_weights`` (level 2). Both at the profile's speed.
    """

    model: str = "sim"
    served_names: tuple[str, ...] = ("sim",)
    profile: EngineProfile = field(default_factory=lambda: builtin_profile("tiny-cpu"))
    speed: float = 1.0
    block_tokens: int = 16
    max_model_len: int = 32_768
    seed: int = 0
    answer_length: float = 1.0
    reply_markup: float | None = None
    task: str = "both"
    scheduling: str = "fcfs"
    reserve_output: bool = True
    data_parallel: int = 1
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    adapters: tuple[tuple[str, str], ...] = ()
    missing_adapters: frozenset[str] = frozenset()
    max_adapters: int = 8
    max_loaded_adapters: int | None = None
    adapter_load_seconds: float = 0.0
    kv_events: KvEventsSettings = field(default_factory=KvEventsSettings)
    kv_transfer: KvTransferSettings = field(default_factory=KvTransferSettings)
    surface: ApiSurface = ApiSurface()
    shutdown_timeout: float = 0.0
    on_sigterm: str | None = None
    wake_seconds: float = 0.0
    reload_seconds: float = 0.0
    keep_alive_seconds: float = 5.0
    embedding_dimensions: int = 384

    @property
    def fingerprint(self) -> str:
        """Returns ``vllm-<version>[-dpN]-<8 hex>``, equal for equal settings.

        The seed, adapters, KV events and KV transfer do not count.
        """
        same = replace(self, seed=0, kv_events=KvEventsSettings(), kv_transfer=KvTransferSettings(), adapters=())
        digest = hashlib.sha256(repr(same).encode()).hexdigest()[:8]
        ranks = f"-dp{self.data_parallel}" if self.data_parallel > 1 else ""
        return f"vllm-{VERSION}{ranks}-{digest}"
