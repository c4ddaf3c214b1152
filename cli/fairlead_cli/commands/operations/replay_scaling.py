"""``fairlead replay-scaling``: the autoscaler's decisions with other settings."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.commands.operations.explain import AutoscalerSource
from fairlead_cli.output import OutputFlag
from fairlead_cli.target import ModelFlag, qualified_name

_AUTOSCALER = AutoscalerSource()


def replay_scaling(
    recording: Annotated[
        Path | None,
        Parameter(help="A recording: a file or a folder. Default: the autoscaler's memory of the last hours."),
    ] = None,
    /,
    *,
    set: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            help="A change, such as target=99%, tpot=100ms or window_seconds=120. Can be given again.",
        ),
    ] = (),
    model: ModelFlag = None,
    since: Annotated[
        str | None, Parameter(help="Only from then on: 20m (ago), 14:05, an ISO date and time, or Unix seconds.")
    ] = None,
    source: Annotated[AutoscalerSource, Parameter(name="*")] = _AUTOSCALER,
    output: OutputFlag = "table",
) -> int:
    """Replay the autoscaler's decisions on its observations, with other settings.

    Shows how many replicas would have been needed, and where decisions differ. The observations
    stay as they were: a replay shows what would have been decided at each moment, not its
    consequences. JSON and YAML have every moment, with the numbers that decided.

    --set takes target, ttft, tpot and period as in spec.slo, and the settings of the core. The
    reference page of the autoscaler lists these.

    Exits 0 with a result, 1 when nothing of that model is recorded, 2 on wrong usage, 3 when no
    autoscaler can be reached.
    """
    name = qualified_name(model, source.cluster.namespace)
    from fairlead_cli.scaling.replay_command import ReplayScalingOptions, run

    return run(ReplayScalingOptions(recording, set, name, since, source.autoscaler, source.cluster, output))
