"""What ``status.conditions`` may say: a closed list of types and reasons, each with when it is said and what to do about it.

``docs/reference/conditions.md`` is generated from here. Whoever writes a condition takes its reason from ``Reason``; the message
beside it names the objects and numbers of the case. ``Reconciling``, ``Stalled`` and ``NameTaken`` are there only while they are
True, so that a model in order shows one condition.
"""

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """What a condition is about."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    NAME_TAKEN = "NameTaken"
    OBJECTIVES_MET = "ObjectivesMet"
    AUTOSCALING = "Autoscaling"


class ConditionOwner(StrEnum):
    """Who writes a condition; nobody else does."""

    OPERATOR = "operator"
    AUTOSCALER = "autoscaler"


class Reason(StrEnum):
    """Why a condition is what it is."""

    ALL_READY = "AllReady"
    SCALED_TO_ZERO = "ScaledToZero"
    STARTING = "Starting"
    DEGRADED = "Degraded"
    NO_INSTANCE = "NoInstance"
    NO_ENDPOINT = "NoEndpoint"
    CREATING = "Creating"
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    DRAINING = "Draining"
    PAUSED = "Paused"
    INVALID_SPEC = "InvalidSpec"
    INVALID_TEMPLATE = "InvalidTemplate"
    TOO_LARGE = "TooLarge"
    UNKNOWN_ACCELERATOR = "UnknownAccelerator"
    LEADER_WORKER_SET_MISSING = "LeaderWorkerSetMissing"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POLICY_REFUSED = "PolicyRefused"
    FORBIDDEN = "Forbidden"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    MISSING_SECRET = "MissingSecret"
    MISSING_CONFIG_MAP = "MissingConfigMap"
    MISSING_CLAIM = "MissingClaim"
    DOWNLOAD_FAILED = "DownloadFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    ENGINE_CRASHING = "EngineCrashing"
    START_TIMEOUT = "StartTimeout"
    BARE_NAME_TAKEN = "BareNameTaken"
    DECIDING = "Deciding"
    AT_MAXIMUM = "AtMaximum"
    BLIND = "Blind"
    ADVISING = "Advising"
    FROZEN = "Frozen"
    SET_ELSEWHERE = "SetElsewhere"
    WITHIN_TARGET = "WithinTarget"
    BELOW_TARGET = "BelowTarget"
    TOO_FEW_REQUESTS = "TooFewRequests"


@dataclass(frozen=True, slots=True)
class ConditionTypeInfo:
    """``says`` is what True means."""

    type: ConditionType
    owner: ConditionOwner
    always: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class ReasonInfo:
    """``type`` is the condition that carries the reason; a Ready that is False because of a Stalled carries the same one."""

    reason: Reason
    type: ConditionType
    when: str
    advice: str


def condition_types() -> tuple[ConditionTypeInfo, ...]:
    """Every type, in the order in which people read them."""
    operator, autoscaler = ConditionOwner.OPERATOR, ConditionOwner.AUTOSCALER
    return (
        ConditionTypeInfo(
            ConditionType.READY,
            operator,
            True,
            "every pool has as many ready instances as are asked of it; requests are served",
        ),
        ConditionTypeInfo(ConditionType.RECONCILING, operator, False, "what runs is being brought to what is asked"),
        ConditionTypeInfo(ConditionType.STALLED, operator, False, "it goes no further until somebody does something"),
        ConditionTypeInfo(
            ConditionType.NAME_TAKEN,
            operator,
            False,
            "clients reach the model by `namespace/name` only: an older one has its name",
        ),
        ConditionTypeInfo(
            ConditionType.OBJECTIVES_MET,
            autoscaler,
            False,
            "requests attain the objectives as often as the target says",
        ),
        ConditionTypeInfo(
            ConditionType.AUTOSCALING, autoscaler, False, "the autoscaler decides on the numbers of instances"
        ),
    )


_READY = (
    (Reason.ALL_READY, "Every pool has its instances, ready.", "Nothing."),
    (
        Reason.SCALED_TO_ZERO,
        "No pool is asked for an instance.",
        "Nothing, if that is meant; else raise `replicas.min` of a pool, or `kubectl scale` the model.",
    ),
    (
        Reason.STARTING,
        "Instances are coming up and nothing has gone wrong: images are pulled, weights downloaded or loaded.",
        "Wait. Large models take minutes; the engine's log shows how far it is.",
    ),
    (
        Reason.DEGRADED,
        "Fewer instances are ready than are asked for; the others serve.",
        "Look at the message and at the pods it names; capacity is less until they are back.",
    ),
    (
        Reason.NO_INSTANCE,
        "No instance of some role is ready, though there were; requests are refused with 503.",
        "Look at the pods that the message names: their events and logs say why they went.",
    ),
    (
        Reason.NO_ENDPOINT,
        "An external engine's pool has no endpoint: no ready pod has the labels of its selector.",
        "Compare `kubectl get pods --show-labels` with the pool's `selector`, and its `port` with the pods'.",
    ),
)
_RECONCILING = (
    (Reason.CREATING, "The objects of the model are being made for the first time.", "Wait."),
    (
        Reason.ROLLING_OUT,
        "Instances are replaced after a change; the old ones serve until the new ones are ready.",
        "Wait. `rollout.paused: true` holds it; undoing the change turns it round.",
    ),
    (Reason.SCALING, "The number of instances is being changed.", "Wait."),
    (
        Reason.DRAINING,
        "Instances that go finish the requests they have, for at most `rollout.drain`.",
        "Wait, or shorten `rollout.drain`.",
    ),
    (
        Reason.PAUSED,
        "A change waits, since `rollout.paused` is true.",
        "Set `rollout.paused: false` to let it through.",
    ),
)
_STALLED = (
    (
        Reason.INVALID_SPEC,
        "The spec passed the API server's schema but this release cannot carry it out; what runs stays as it is.",
        "Mend the field that the message names. `fairlead lint` finds the same without a cluster.",
    ),
    (
        Reason.INVALID_TEMPLATE,
        "A pool's `template` cannot be merged, or the API server refuses the pods that it makes.",
        "Mend the part of `template` that the message names.",
    ),
    (
        Reason.TOO_LARGE,
        "An object made of this spec would be larger than the API server takes (about 1 MiB).",
        "Shorten `engine.args`, `engine.env` or `template`; put long texts into a ConfigMap.",
    ),
    (
        Reason.UNKNOWN_ACCELERATOR,
        "No AcceleratorClass and no built-in one has the name that a pool gives.",
        "Correct the name (`kubectl get acceleratorclasses`), or apply the class.",
    ),
    (
        Reason.LEADER_WORKER_SET_MISSING,
        "A pool spans nodes, and the cluster does not know LeaderWorkerSets.",
        "Install LeaderWorkerSet, or use `parallelism.nodes: 1`.",
    ),
    (
        Reason.INSUFFICIENT_CAPACITY,
        "No node has what pods ask for, for longer than a cluster's autoscaler is given (`FAIRLEAD_CAPACITY_GRACE`).",
        "Add nodes, lower replicas or parallelism, or check the AcceleratorClass's `resource`, `nodeSelector` and `tolerations`.",
    ),
    (
        Reason.QUOTA_EXCEEDED,
        "A ResourceQuota of the namespace does not let the pods in.",
        "Raise the quota that the message names, or ask for less.",
    ),
    (
        Reason.POLICY_REFUSED,
        "An admission rule of the cluster (Pod Security, a policy or a webhook) refuses the objects.",
        "Change what the message names, often a pool's `template`, or the policy.",
    ),
    (
        Reason.FORBIDDEN,
        "The operator may not write the objects of the model.",
        "Compare the operator's roles with those of its chart; it may have been given some namespaces only.",
    ),
    (
        Reason.IMAGE_PULL_FAILED,
        "The engine's image cannot be pulled.",
        "Check `engine.image`, `engine.imagePullSecrets` and the way to the registry.",
    ),
    (
        Reason.MISSING_SECRET,
        "A Secret that the spec names, or the entry of it, does not exist.",
        "Create it in the model's namespace; pods start by themselves then.",
    ),
    (
        Reason.MISSING_CONFIG_MAP,
        "A ConfigMap that the spec names, or the entry of it, does not exist.",
        "Create it in the model's namespace; pods start by themselves then.",
    ),
    (
        Reason.MISSING_CLAIM,
        "A PersistentVolumeClaim that the spec names does not exist or is bound to no volume.",
        "Create it in the model's namespace, or look at its events.",
    ),
    (
        Reason.DOWNLOAD_FAILED,
        "The weights cannot be downloaded.",
        "Check `model.source`, `model.revision` and `model.credentials`; the download's log has the server's answer.",
    ),
    (
        Reason.OUT_OF_MEMORY,
        "An engine was ended for using more main memory than its pod may.",
        "Raise the container's memory in `template`, or lower `kvCache.offload.memory`.",
    ),
    (
        Reason.ENGINE_CRASHING,
        "An engine keeps ending.",
        "Read its log (`kubectl logs --previous`); wrong `engine.args` and too little device memory are common.",
    ),
    (
        Reason.START_TIMEOUT,
        "An engine did not answer its health path within the start-up budget.",
        "Read its log. A slow download is shortened by `model.cache`; a longer budget is set by `startupProbe` in `template`.",
    ),
)
_NAME_TAKEN = (
    (
        Reason.BARE_NAME_TAKEN,
        "An older model of another namespace has the same name, and clients that give the bare name get that one.",
        "Let clients say `namespace/name`, or rename one of the two.",
    ),
)
_AUTOSCALING = (
    (
        Reason.DECIDING,
        "The autoscaler sets the numbers; the message says of each pool how many, by which rule, and from what.",
        "Nothing.",
    ),
    (
        Reason.AT_MAXIMUM,
        "A pool needs more instances than its max, or a schedule's.",
        "Raise `replicas.max`, or relax `spec.objectives`.",
    ),
    (
        Reason.BLIND,
        "Gateways cannot be asked, or what they say contradicts itself. Numbers stay, and rise after a while; they never fall.",
        "Look at the gateways that the message names: their pods, and whether a NetworkPolicy keeps the autoscaler out.",
    ),
    (
        Reason.ADVISING,
        "`autoscaling.mode` is `Advise`: the message says what would be done.",
        "Set `mode: Auto` to let it.",
    ),
    (
        Reason.FROZEN,
        "All scaling is frozen, by the chart's `autoscaler.freeze`.",
        "Take the freeze away.",
    ),
    (
        Reason.SET_ELSEWHERE,
        "Somebody else sets the number of every pool: `spec.replicas`, `kubectl scale`, an HPA or KEDA. The autoscaler leaves it.",
        "Nothing, if that is meant. Else remove `spec.replicas`; or, where a Deployment's number was written, take away what writes "
        "it and write another one in the autoscaler's name: `kubectl patch deployment NAME --subresource=scale --type=merge "
        '--field-manager=fairlead-autoscaler -p \'{"spec":{"replicas":2}}\'`.',
    ),
)
_OBJECTIVES_MET = (
    (
        Reason.WITHIN_TARGET,
        "Of the last five minutes' requests as many were within each objective as the target says.",
        "Nothing.",
    ),
    (
        Reason.BELOW_TARGET,
        "Of the last five minutes' requests fewer were within an objective than the target says.",
        "Look at `Autoscaling`: instances may be starting, or at their max. Else look at `fairlead explain route`.",
    ),
    (
        Reason.TOO_FEW_REQUESTS,
        "There were fewer than twenty requests in five minutes, of which no share can be told.",
        "Nothing.",
    ),
)


def reasons() -> tuple[ReasonInfo, ...]:
    """Every reason, by type."""
    listed = (
        (ConditionType.READY, _READY),
        (ConditionType.RECONCILING, _RECONCILING),
        (ConditionType.STALLED, _STALLED),
        (ConditionType.NAME_TAKEN, _NAME_TAKEN),
        (ConditionType.AUTOSCALING, _AUTOSCALING),
        (ConditionType.OBJECTIVES_MET, _OBJECTIVES_MET),
    )
    return tuple(ReasonInfo(reason, kind, when, do) for kind, rows in listed for reason, when, do in rows)
