"""The adapter for vLLM."""

from collections.abc import Collection, Sequence

from fairlead.engines.adapter_protocol import LocalEngineCommand, LocalEngineReplica
from fairlead.engines.metric_names import VLLM_METRICS, read_rank_signals, read_signals
from fairlead.engines.sleep_mode import DEV_MODE_VARIABLE, SLEEP_MODE_FLAG
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals


class Vllm:
    """The adapter for vLLM, which is started from PATH, one process per replica."""

    kind = "vllm"
    health_path = "/health"
    metrics_path = "/metrics"

    def local_launch_command(self, replica: LocalEngineReplica, ports: Sequence[int]) -> LocalEngineCommand:
        """Returns the command `vllm serve` for one port.

        Raises BadInput for several ports, and for weights other than hf:// and file://.

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
        return LocalEngineCommand((*command, *replica.args), env, prints_ready_line=False)

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        return read_signals(VLLM_METRICS, metrics, rank)

    def parse_rank_signals(self, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
        return read_rank_signals(VLLM_METRICS, metrics, ranks)


def local_model_argument(source: str) -> str:
    """Returns the model argument for vLLM: a hub name or a path. Raises BadInput for others."""
    for scheme in ("hf://", "file://"):
        if source.startswith(scheme):
            return source.removeprefix(scheme)
    hint = "use hf:// or file://, or let the engine be simulated"
    raise BadInput(f"a local vllm cannot load {source.partition(':')[0]}: sources", field="spec.model.uri", hint=hint)
