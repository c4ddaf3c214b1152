"""Scale target: the interface between the autoscaler and what it scales, a cluster or the local
stack.

A `ScaleTarget` returns the models and their replicas; a `ReplicaScaler` changes the number of
replicas. The metrics of engines and gateways come from the `collector`, in both cases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.api.spec.autoscaling import Autoscaling
from fairlead_autoscaler.core import ModelSpec, ReplicaState, WakeTiming


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica of a pool.

    id: the name by which it is removed, such as a pod's.
    startup_seconds: time from its creation until it was ready; None before.
    instances: ids of its endpoints in the fleet.
    node: the kind of its machine, by which startup times are learned; empty: unknown.
    last_wake: None before its first wake.
    """

    id: str
    state: ReplicaState
    age_seconds: float
    startup_seconds: float | None = None
    instances: tuple[str, ...] = ()
    node: str = ""
    last_wake: WakeTiming | None = None


@dataclass(frozen=True, slots=True)
class PoolState:
    """The current state of a pool.

    desired, asleep: replicas that should serve, and that should sleep.
    replicas_owner: another owner of the number (an HPA, `spec.replicas`), with which the autoscaler
        does not interfere.
    pause_reason: why nothing may change now, such as a rollout.
    """

    desired: int
    replicas: tuple[Replica, ...] = ()
    replicas_owner: str | None = None
    pause_reason: str | None = None
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class ModelState:
    """The current state of a model.

    model: with the pools' own bounds.
    policy: `spec.autoscaling`, with other bounds by the hour.
    """

    model: ModelSpec
    policy: Autoscaling
    pools: Mapping[str, PoolState] = field(default_factory=dict)


class ScaleTarget(Protocol):
    """A source of models and pools to scale."""

    async def observe(self) -> Mapping[str, ModelState]:
        """Returns every model with a pool to scale, by `namespace/name`. Raises Unavailable if they
        are unknown; then nothing is decided, and nothing changes.
        """


class ReplicaScaler(Protocol):
    """A writer of replica counts: the `/scale` subresource in a cluster, the supervisor in local
    mode.
    """

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Requests `replicas` serving and `asleep` sleeping instances for one pool of the model
        `key`.

        leaving: ids of replicas to stop first, if there are too many.
        """
