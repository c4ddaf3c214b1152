"""The adapter for SGLang, which runs in pods (`fairlead/engines/containers`). Local mode
simulates it.
"""

from collections.abc import Sequence

from fairlead.engines.adapter_protocol import EngineReplica, LaunchCommand
from fairlead.engines.prometheus_scan import mean_samples, sum_samples
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals

_RUNNING = (b"sglang:num_running_reqs",)
_WAITING = (b"sglang:num_queue_reqs",)
_KV_USAGE = (b"sglang:token_usage",)
_PROMPT_TOKENS = (b"sglang:prompt_tokens_total",)
_GENERATION_TOKENS = (b"sglang:generation_tokens_total",)
_CACHED_TOKENS = (b"sglang:cached_tokens_total",)
_RETRACTIONS = (b"sglang:num_retracted_requests_total",)


class Sglang:
    """The adapter for SGLang. Metrics need the flag `--enable-metrics`."""

    kind = "sglang"
    health_path = "/health"
    metrics_path = "/metrics"

    def launch_command(self, replica: EngineReplica, ports: Sequence[int]) -> LaunchCommand:
        """Raises BadInput: local mode starts only vLLM and simulated engines."""
        raise BadInput(
            "local mode cannot start a real sglang", field="spec.engine.type", hint="let the engine be simulated"
        )

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Returns the values of a metrics page.

        SGLang counts every prompt token as a cache query, and hits by tier.
        """
        page, wanted = b"\n" + metrics, None if rank is None else b'dp_rank="%d"' % rank
        prompts = sum_samples(page, _PROMPT_TOKENS, wanted)
        return EngineSignals(
            running=sum_samples(page, _RUNNING, wanted),
            waiting=sum_samples(page, _WAITING, wanted),
            kv_usage=mean_samples(page, _KV_USAGE, wanted),
            prompt_tokens_total=prompts,
            generation_tokens_total=sum_samples(page, _GENERATION_TOKENS, wanted),
            prefix_queries_total=prompts,
            prefix_hits_total=sum_samples(page, _CACHED_TOKENS, wanted),
            preemptions_total=sum_samples(page, _RETRACTIONS, wanted),
            sleeping=None,
        )
