"""The seam between the autoscaler's process and what it scales: a cluster, or the stack that local mode runs.

A World says which models are scaled and how many replicas they have; a ``fairlead.fleet.model.Scaler`` changes that. What engines and
gateways measure comes another way (``reading``), the same in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.api import Autoscaling
from fairlead_autoscaler.core import ModelSpec, ReplicaState, WakeTiming


@dataclass(frozen=True, slots=True)
class Replica:
    """``id`` is what whoever removes it calls it (a pod's name); ``instances`` are its endpoints' ids in the fleet.

    ``age_seconds`` counts from its creation, ``startup_seconds`` from there until it was ready (None before); ``node`` is the kind of
    machine that it is on, empty where nobody knows: start-up times are learned by it. ``woken`` is of its last waking.
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
    """A pool as it is: how many replicas are asked for to serve and (``asleep``) to sleep, and those there are. ``held_by`` names who
    else sets its number, and is then not interfered with (an HPA, ``spec.replicas``); ``paused`` is why nothing of it may be changed
    now (a rollout)."""

    desired: int
    replicas: tuple[Replica, ...] = ()
    replicas_owner: str | None = None
    pause_reason: str | None = None
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model as it is. The bounds in ``model`` are the pools' own; ``policy`` says what is to be done, and other bounds by the
    hour."""

    model: ModelSpec
    policy: Autoscaling
    pools: Mapping[str, PoolState] = field(default_factory=dict)


class ScaleTarget(Protocol):
    """What is scaled."""

    async def observe(self) -> Mapping[str, ModelState]:
        """Every model with a pool to scale, by ``namespace/name``. Raises Unavailable when that cannot be told: then nothing is
        decided, and everything stays."""
        ...


class ReplicaScaler(Protocol):
    """A writer of replica counts: the `/scale` subresource in a cluster, the supervisor in local
    mode.
    """

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Requests `replicas` serving and `asleep` sleeping instances for one pool of the model
        `key`.

        leaving: ids of replicas to stop first, if there are too many.
        """
        ...
