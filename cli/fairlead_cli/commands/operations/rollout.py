"""``fairlead rollout``: follows, pauses, resumes, undoes and promotes the rollout of a model.

The verbs write one field and one annotation of the ModelDeployment. kubectl can write them too, as
the operator's guide shows.
"""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.output import OutputFlag
from fairlead_cli.target import ContextFlag, KubeconfigFlag, ModelFlag, NamespaceFlag


@dataclass(frozen=True, slots=True)
class RolloutFlags:
    """The flags of all verbs of a rollout."""

    wait: Annotated[
        str | None,
        Parameter(help="Wait until all instances have the running revision, for at most this long, such as 10m."),
    ] = None
    namespace: NamespaceFlag = None
    context: ContextFlag = None
    kubeconfig: KubeconfigFlag = None
    output: OutputFlag = "table"


_Flags = Annotated[RolloutFlags, Parameter(name="*")]
_DEFAULTS = RolloutFlags()


def rollout_status(model: ModelFlag = None, *, flags: _Flags = _DEFAULTS) -> int:
    """Show which revision of a model runs, how far it is, and which revisions are stored.

    Exits 0 when every instance has the running revision and is ready, and 1 until then. Exits 2 on
    wrong usage, 3 when no API server can be reached.
    """
    return _run("status", model, flags)


def rollout_pause(model: ModelFlag = None, *, flags: _Flags = _DEFAULTS) -> int:
    """Pause the rollouts of a model: changes of its spec wait; numbers of instances still follow.

    Exits 0 when done, 1 when --wait ended first, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    return _run("pause", model, flags)


def rollout_resume(model: ModelFlag = None, *, flags: _Flags = _DEFAULTS) -> int:
    """Run what the spec of a model says. This ends a pause and an undo.

    Exits 0 when done, 1 when --wait ended first, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    return _run("resume", model, flags)


def rollout_undo(
    model: ModelFlag = None,
    *,
    to: Annotated[int | None, Parameter(help="The revision to run. Default: the one before what runs.")] = None,
    flags: _Flags = _DEFAULTS,
) -> int:
    """Run an earlier revision of a model, or end its canary. The spec stays as it is.

    Exits 0 when done, 1 when --wait ended first, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    return _run("undo", model, flags, to)


def rollout_promote(model: ModelFlag = None, *, flags: _Flags = _DEFAULTS) -> int:
    """Run what the spec of a model says on all instances, without a canary or in spite of one.

    Exits 0 when done, 1 when --wait ended first, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    return _run("promote", model, flags)


def _run(action: str, model: str | None, flags: RolloutFlags, to: int | None = None) -> int:
    from fairlead_cli.rollouts.command import RolloutOptions, run
    from fairlead_cli.target import ClusterOptions

    cluster = ClusterOptions(flags.kubeconfig, flags.context, flags.namespace)
    return run(RolloutOptions(cluster, action, model, to, flags.wait, flags.output))
