"""``fairlead rollout``: pauses, resumes, undoes and follows the rollout of a model."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def rollout(
    action: Annotated[
        Literal["status", "pause", "resume", "undo"],
        Parameter(
            help="status: which revision runs and how far it is; pause: changes of the spec wait; undo: run an earlier revision, "
            "the spec stays; resume: run what the spec says, which ends a pause and an undo."
        ),
    ] = "status",
    model: Annotated[str | None, Parameter(help="Its name; may be left out where the namespace has only one.")] = None,
    /,
    *,
    to: Annotated[
        int | None, Parameter(help="With undo: the revision to run. Default: the one before what runs.")
    ] = None,
    wait: Annotated[
        str | None,
        Parameter(
            help="Afterwards, wait until all instances are of the revision that runs, for at most this long, such as 10m."
        ),
    ] = None,
    namespace: Annotated[
        str | None, Parameter(name=["--namespace", "-n"], help="The model's namespace. Default: the context's.")
    ] = None,
    context: Annotated[str | None, Parameter(help="A context of the kubeconfig. Default: its current one.")] = None,
    kubeconfig: Annotated[
        Path | None, Parameter(help="The kubeconfig. Default: KUBECONFIG, else ~/.kube/config.")
    ] = None,
) -> int:
    """Pause, resume, undo and follow the rollout of a model in a cluster.

    All of it is one field and one annotation of the ModelDeployment, which kubectl can write too;
    the operator's guide says how.

    Exits 0 when done, 2 on wrong usage, 3 when no API server can be reached. `status` and --wait
    exit 1 until every instance has the running revision and is ready.
    """
    from fairlead_cli.cluster.access.connection import ClusterOptions
    from fairlead_cli.rollouts.command import RolloutOptions, run

    return run(RolloutOptions(ClusterOptions(kubeconfig, context, namespace), action, model, to, wait))
