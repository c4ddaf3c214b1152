"""The adapter for vLLM."""

from collections.abc import Sequence

from fairlead.engines.adapter_protocol import EngineReplica, LaunchCommand
from fairlead.engines.prometheus_scan import mean_samples, parse_samples, sum_samples
from fairlead.engines.sleep_mode import DEV_MODE_VARIABLE, SLEEP_MODE_FLAG
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals

_RUNNING = (b"vllm:num_requests_running",)
_WAITING = (b"vllm:num_requests_waiting",)
_KV_USAGE = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")
_PROMPT_TOKENS = (b"vllm:prompt_tokens_total",)
_GENERATION_TOKENS = (b"vllm:generation_tokens_total",)
_PREFIX_QUERIES = (b"vllm:prefix_cache_queries_total", b"vllm:gpu_prefix_cache_queries_total")
_PREFIX_HITS = (b"vllm:prefix_cache_hits_total", b"vllm:gpu_prefix_cache_hits_total")
_PREEMPTIONS = (b"vllm:num_preemptions_total",)
_SLEEP_STATE = b"vllm:engine_sleep_state"


class Vllm:
    """The adapter for vLLM, which is started from PATH, one process per replica."""

    kind = "vllm"
    health_path = "/health"
    metrics_path = "/metrics"

    def launch_command(self, replica: EngineReplica, ports: Sequence[int]) -> LaunchCommand:
        """Returns the command `vllm serve` for one port. Raises BadInput for several ports.

        The responses of this vLLM report cached tokens, by which routing is measured.
        """
        if len(ports) != 1:
            raise BadInput("one vllm process serves one port", field="ports", hint="start one process per replica")
        command = ["vllm", "serve", local_model_argument(replica.source), "--served-model-name", replica.name]
        command += ["--host", "127.0.0.1", "--port", str(ports[0]), "--enable-prompt-tokens-details"]
        env = dict(replica.env)
        if replica.sleeps:
            command.append(SLEEP_MODE_FLAG)
            env |= dict((DEV_MODE_VARIABLE,))
        return LaunchCommand((*command, *replica.args), env, prints_ready_line=False)

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Returns the values of a metrics page: sums over ranks, and the mean for `kv_usage`."""
        page, wanted = b"\n" + metrics, None if rank is None else b'engine="%d"' % rank
        return EngineSignals(
            running=sum_samples(page, _RUNNING, wanted),
            waiting=sum_samples(page, _WAITING, wanted),
            kv_usage=mean_samples(page, _KV_USAGE, wanted),
            prompt_tokens_total=sum_samples(page, _PROMPT_TOKENS, wanted),
            generation_tokens_total=sum_samples(page, _GENERATION_TOKENS, wanted),
            prefix_queries_total=sum_samples(page, _PREFIX_QUERIES, wanted),
            prefix_hits_total=sum_samples(page, _PREFIX_HITS, wanted),
            preemptions_total=sum_samples(page, _PREEMPTIONS, wanted),
            sleeping=_sleeping(page, wanted),
        )


def local_model_argument(source: str) -> str:
    """Returns the model argument for vLLM: a hub name or a path. Raises BadInput for others."""
    for scheme in ("hf://", "file://"):
        if source.startswith(scheme):
            return source.removeprefix(scheme)
    hint = "use hf:// or file://, or let the engine be simulated"
    raise BadInput(f"a local vllm cannot load {source.partition(':')[0]}: sources", field="spec.model.uri", hint=hint)


def _sleeping(page: bytes, wanted: bytes | None) -> bool | None:
    """Returns True if no rank is awake; None if the vLLM release does not report it."""
    awake = [value for labels, value in parse_samples(page, _SLEEP_STATE, wanted) if b'sleep_state="awake"' in labels]
    return not any(awake) if awake else None
