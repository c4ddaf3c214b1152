"""The adapter for SGLang, which runs in pods (`fairlead/engines/containers`). Local mode
simulates it.
"""

from collections.abc import Collection, Sequence

from fairlead.engines.adapter_protocol import LocalEngineCommand, LocalEngineReplica
from fairlead.engines.metric_names import SGLANG_METRICS, read_rank_signals, read_signals
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals


class Sglang:
    """The adapter for SGLang. Metrics need the flag `--enable-metrics`."""

    kind = "sglang"
    health_path = "/health"
    metrics_path = "/metrics"

    def local_launch_command(self, replica: LocalEngineReplica, ports: Sequence[int]) -> LocalEngineCommand:
        """Raises BadInput: local mode starts only vLLM and simulated engines."""
        raise BadInput(
            "local mode cannot start a real sglang", field="spec.engine.type", hint="let the engine be simulated"
        )

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Returns the values of a metrics page."""
        return read_signals(SGLANG_METRICS, metrics, rank)

    def parse_rank_signals(self, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
        """Returns the values of several ranks of one metrics page."""
        return read_rank_signals(SGLANG_METRICS, metrics, ranks)
