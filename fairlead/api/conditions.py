"""The condition types and reasons of `status.conditions`: closed lists with meaning and advice.

The condition `fairlead.io/Serving` of pods is described here, too.
docs/reference/conditions.md is generated from this module. Writers take the reason from `Reason`;
the message names the objects and numbers of the case. `Reconciling`, `Stalled` and `NameTaken` are
present only while True, so that the operator writes one condition for a healthy model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

STALLED_IF_LASTS: Final = "the model is Stalled if that lasts"
"""Words of a message of `Reconciling`; the capacity grace follows, such as ``10m``."""

_WHILE_TRUE = "only while True"
_WHILE_AUTOSCALED = "while the model is autoscaled"
_OF_ROUTES = "always, on a ModelRoute"


class ConditionType(StrEnum):
    """The `type` of an entry of `status.conditions`."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    NAME_TAKEN = "NameTaken"
    CANARY_HEALTHY = "CanaryHealthy"
    SLO_MET = "SLOMet"
    AUTOSCALING = "Autoscaling"
    ACCEPTED = "Accepted"
    RESOLVED_REFS = "ResolvedRefs"


class ConditionOwner(StrEnum):
    """The component that writes a condition. No other component does."""

    OPERATOR = "operator"
    AUTOSCALER = "autoscaler"


class Reason(StrEnum):
    """The `reason` of an entry of `status.conditions`: why it has its status."""

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
    UNBOUND_CLAIM = "UnboundClaim"
    DOWNLOAD_FAILED = "DownloadFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    ENGINE_CRASHING = "EngineCrashing"
    START_TIMEOUT = "StartTimeout"
    BARE_NAME_TAKEN = "BareNameTaken"
    SERVED_NAME_TAKEN = "ServedNameTaken"
    CANARY_STARTING = "CanaryStarting"
    OBSERVING = "Observing"
    PROMOTED = "Promoted"
    TTFT_MISSED = "TTFTMissed"
    TPOT_MISSED = "TPOTMissed"
    ERRORS_MISSED = "ErrorsMissed"
    ANSWER_LENGTH_MISSED = "AnswerLengthMissed"
    ENDED_BY_HAND = "EndedByHand"
    DECIDING = "Deciding"
    AT_MAXIMUM = "AtMaximum"
    LOAD_UNKNOWN = "LoadUnknown"
    ADVISING = "Advising"
    FROZEN = "Frozen"
    SET_ELSEWHERE = "SetElsewhere"
    WITHIN_TARGET = "WithinTarget"
    BELOW_TARGET = "BelowTarget"
    TOO_FEW_REQUESTS = "TooFewRequests"
    VALID = "Valid"
    INVALID_ROUTE = "InvalidRoute"
    NAMES_TAKEN = "NamesTaken"
    RESOLVED = "Resolved"
    MODEL_NOT_FOUND = "ModelNotFound"
    REF_NOT_PERMITTED = "RefNotPermitted"
    NO_WEIGHT = "NoWeight"
    LOADABLE = "Loadable"
    INVALID_ADAPTER = "InvalidAdapter"
    BASE_NOT_FOUND = "BaseNotFound"
    BASE_WITHOUT_SLOTS = "BaseWithoutSlots"
    BASE_UNSUITABLE = "BaseUnsuitable"
    BASE_INVALID = "BaseInvalid"
    CLAIM_NOT_MOUNTED = "ClaimNotMounted"


@dataclass(frozen=True, slots=True)
class ConditionTypeInfo:
    """Documentation of a condition type.

    presence: when a model has the condition.
    meaning: what the status True means.
    """

    type: ConditionType
    owner: ConditionOwner
    presence: str
    meaning: str


@dataclass(frozen=True, slots=True)
class ReasonInfo:
    """Documentation of a reason.

    type: the condition that carries the reason. While `Stalled` is True, `Ready` is False and
        repeats the reason of `Stalled`.
    """

    reason: Reason
    type: ConditionType
    when: str
    advice: str


_OPERATOR, _AUTOSCALER = ConditionOwner.OPERATOR, ConditionOwner.AUTOSCALER
_TYPES: Final = {
    ConditionType.READY: (
        _OPERATOR,
        "always",
        "every pool has its desired number of ready instances; requests are served. Of a ModelAdapter: gateways load "
        "it when a request names it",
    ),
    ConditionType.RECONCILING: (_OPERATOR, _WHILE_TRUE, "the engines are being brought to the spec"),
    ConditionType.STALLED: (_OPERATOR, _WHILE_TRUE, "progress needs an action of a user"),
    ConditionType.NAME_TAKEN: (
        _OPERATOR,
        _WHILE_TRUE,
        "clients do not reach the model or adapter by one of its names, which another has; `namespace/name` works",
    ),
    ConditionType.CANARY_HEALTHY: (
        _OPERATOR,
        "once a change had a canary (`rollout.canary`)",
        "the latest canary was promoted; Unknown: it is observed; False: it was worse, or ended by hand",
    ),
    ConditionType.SLO_MET: (_AUTOSCALER, _WHILE_AUTOSCALED, "the target share of requests attains the SLO"),
    ConditionType.AUTOSCALING: (_AUTOSCALER, _WHILE_AUTOSCALED, "the autoscaler sets the replica counts"),
    ConditionType.ACCEPTED: (_OPERATOR, _OF_ROUTES, "gateways serve the route under all names that it claims"),
    ConditionType.RESOLVED_REFS: (_OPERATOR, _OF_ROUTES, "every target exists, and each rule has one with a weight"),
}


_REASONS: Final[Mapping[ConditionType, Mapping[Reason, tuple[str, str]]]] = {
    ConditionType.READY: {
        Reason.ALL_READY: ("Every pool has its desired number of ready instances.", "Nothing."),
        Reason.SCALED_TO_ZERO: (
            "The desired number of instances is zero in every pool.",
            "Nothing, if this is intended. Otherwise raise `minReplicas` of a pool, or `kubectl scale` the model.",
        ),
        Reason.STARTING: (
            "Instances are starting without errors: images are pulled, weights downloaded or loaded.",
            "Wait. Large models take minutes; the engine's log shows the progress.",
        ),
        Reason.DEGRADED: (
            "Fewer instances are ready than desired; the others serve.",
            "Check the pods that the message names. Capacity is reduced until they are ready.",
        ),
        Reason.NO_INSTANCE: (
            "A role has no ready instance any more; requests are rejected with 503.",
            "Check the pods that the message names: their events and logs show the cause.",
        ),
        Reason.NO_ENDPOINT: (
            "A pool of an external engine has no endpoint: no ready pod has the labels of its selector.",
            "Compare `kubectl get pods --show-labels` with the pool's `selector`, and its `port` with that of the pods.",
        ),
        Reason.LOADABLE: (
            "The base is there, and its engines can load the adapter. A gateway loads it when a request names it.",
            "Nothing. A wrong path shows with the first request: 503 `adapter_not_loaded`; the gateway's log says why.",
        ),
        Reason.BASE_NOT_FOUND: (
            "No ModelDeployment in the adapter's namespace has the name in `base`. Gateways do not list the adapter.",
            "Create it, or correct `base`.",
        ),
        Reason.BASE_WITHOUT_SLOTS: (
            "The base has no `spec.adapters`, so its engines load no adapters. Gateways do not list the adapter.",
            "Write `adapters: {slots: 8, maxRank: 64}` in its spec. That replaces its engines.",
        ),
        Reason.BASE_UNSUITABLE: (
            "Engines of the base load no adapters, no downloader is in its pods, or the adapter has the base's name.",
            "Give the adapter to a vLLM or SGLang model with pools of the role Serve, or write `adapters: {download: {}}` "
            "in the base.",
        ),
        Reason.BASE_INVALID: (
            "This release cannot read the spec of the base. Gateways serve the adapter as it was last.",
            "Correct the base: its condition `Stalled` names the field.",
        ),
        Reason.CLAIM_NOT_MOUNTED: (
            "The engines of the base do not mount the claim in `source`.",
            "Add the claim to `adapters.claimNames` of the base. That replaces its engines.",
        ),
        Reason.INVALID_ADAPTER: (
            "The spec passes the API server's schema, but this release cannot read it. Gateways serve the adapter as it was last.",
            "Correct the field that the message names. `fairlead lint` reports the same without a cluster.",
        ),
    },
    ConditionType.RECONCILING: {
        Reason.CREATING: ("The objects of the model are created for the first time.", "Wait."),
        Reason.ROLLING_OUT: (
            "Instances are replaced after a change; the old ones serve until the new ones are ready.",
            "Wait. `rollout.paused: true` pauses it; reverting the change reverses it.",
        ),
        Reason.SCALING: ("The number of instances is changing.", "Wait."),
        Reason.DRAINING: (
            "Instances that are being removed finish their requests, for at most `rollout.drainTimeout`.",
            "Wait, or shorten `rollout.drainTimeout`.",
        ),
        Reason.PAUSED: (
            "A change waits because `rollout.paused` is true.",
            "Set `rollout.paused: false` to roll it out.",
        ),
    },
    ConditionType.STALLED: {
        Reason.INVALID_SPEC: (
            "The spec passes the API server's schema, but this release does not support it. Running engines stay.",
            "Correct the field that the message names. `fairlead lint` reports the same without a cluster.",
        ),
        Reason.INVALID_TEMPLATE: (
            "A pool's `template` cannot be merged, or the API server rejects the resulting pods.",
            "Correct the part of `template` that the message names.",
        ),
        Reason.TOO_LARGE: (
            "An object of this spec would exceed the maximum size of the API server (about 1 MiB).",
            "Shorten `engine.args`, `engine.env` or `template`; put long texts into a ConfigMap.",
        ),
        Reason.UNKNOWN_ACCELERATOR: (
            "No AcceleratorClass, applied or built in, has the name in a pool.",
            "Correct the name (`kubectl get acceleratorclasses`), or apply the class.",
        ),
        Reason.LEADER_WORKER_SET_MISSING: (
            "A pool has instances on several nodes, and the cluster has no LeaderWorkerSets.",
            "Install LeaderWorkerSet, or use `parallelism.nodes: 1`.",
        ),
        Reason.INSUFFICIENT_CAPACITY: (
            "No node has had the resources for a pod for longer than `FAIRLEAD_CAPACITY_GRACE`, the time for a cluster autoscaler.",
            "Add nodes, lower replicas or parallelism, or check `resource`, `nodeSelector` and `tolerations` of the "
            "AcceleratorClass.",
        ),
        Reason.QUOTA_EXCEEDED: (
            "A ResourceQuota of the namespace rejects the pods.",
            "Raise the quota that the message names, or request less.",
        ),
        Reason.POLICY_REFUSED: (
            "An admission rule of the cluster (Pod Security, a policy or a webhook) rejects the objects.",
            "Change what the message names, often a pool's `template`, or the policy.",
        ),
        Reason.FORBIDDEN: (
            "The operator lacks the permission to write the objects of the model.",
            "Compare the operator's roles with those of its chart; it may be restricted to some namespaces.",
        ),
        Reason.IMAGE_PULL_FAILED: (
            "The engine's image cannot be pulled.",
            "Check `engine.image`, `engine.imagePullSecrets` and the connection to the registry.",
        ),
        Reason.MISSING_SECRET: (
            "A Secret in the spec, or its key, does not exist. Kubelet says so of a pod that has a node; `fairlead check` "
            "finds it before.",
            "Create it in the model's namespace; the pods then start by themselves.",
        ),
        Reason.MISSING_CONFIG_MAP: (
            "A ConfigMap in the spec, or its key, does not exist.",
            "Create it in the model's namespace; the pods then start by themselves.",
        ),
        Reason.MISSING_CLAIM: (
            "A PersistentVolumeClaim in the spec does not exist.",
            "Create it in the model's namespace; the pods then start by themselves.",
        ),
        Reason.UNBOUND_CLAIM: (
            "A PersistentVolumeClaim of the pods exists and is not bound to a volume: it is `Pending`, or has lost its volume.",
            "Read the claim's events. It needs a StorageClass that can provide its size and access mode, or a volume that fits.",
        ),
        Reason.DOWNLOAD_FAILED: (
            "The weights cannot be downloaded.",
            "Check `model.uri`, `model.revision` and `model.credentials`; the download's log has the server's response.",
        ),
        Reason.OUT_OF_MEMORY: (
            "An engine was killed because its pod exceeded its memory limit.",
            "Raise the container's memory in `template`, or lower `kvCache.offload.memory`.",
        ),
        Reason.ENGINE_CRASHING: (
            "An engine exits repeatedly.",
            "Read its log (`kubectl logs --previous`). Wrong `engine.args` and too little device memory are common causes.",
        ),
        Reason.START_TIMEOUT: (
            "An engine's health path did not succeed within the startup time.",
            "Read its log. `model.cache` shortens slow downloads; `startupProbe` in `template` allows more time.",
        ),
    },
    ConditionType.NAME_TAKEN: {
        Reason.BARE_NAME_TAKEN: (
            "A model in another namespace owns the same name, even if it is deleted; clients that give only the name get that model.",
            "Use `namespace/name` in clients, rename one of the two, or let the owner release the name. "
            "The chart value `clientNames` assigns it.",
        ),
        Reason.SERVED_NAME_TAKEN: (
            "A name in `model.servedNames` belongs to another model, or begins with the name of a namespace that holds models.",
            "Let clients say `namespace/name`, or remove the name that the message gives.",
        ),
    },
    ConditionType.CANARY_HEALTHY: {
        Reason.CANARY_STARTING: ("The instances of the canary are starting.", "Wait."),
        Reason.OBSERVING: (
            "The canary gets its share of the conversations and is compared with the running revision.",
            "Wait, or decide with `fairlead rollout promote` or `fairlead rollout undo`.",
        ),
        Reason.PROMOTED: ("No difference was found in all steps; the revision replaced the earlier one.", "Nothing."),
        Reason.TTFT_MISSED: (
            "The canary's first tokens come later than those of the running revision.",
            "Compare engine, arguments and image of both revisions; change the spec, or run `fairlead rollout promote`.",
        ),
        Reason.TPOT_MISSED: (
            "The canary's tokens come more slowly than those of the running revision.",
            "Compare engine, arguments and image of both revisions; change the spec, or run `fairlead rollout promote`.",
        ),
        Reason.ERRORS_MISSED: (
            "More requests fail at the canary than at the running revision.",
            "Read the log of its engines, and change the spec.",
        ),
        Reason.ANSWER_LENGTH_MISSED: (
            "The canary's answers have another length than those of the running revision.",
            "Compare chat template, parsers and weights of both revisions; if it is intended, run `fairlead rollout promote`.",
        ),
        Reason.ENDED_BY_HAND: ("`fairlead rollout undo`, or another change, ended the canary.", "Nothing."),
    },
    ConditionType.AUTOSCALING: {
        Reason.DECIDING: (
            "The autoscaler sets the replica counts. The message has each pool's count, its rule and its inputs.",
            "Nothing.",
        ),
        Reason.AT_MAXIMUM: (
            "A pool needs more instances than its `maxReplicas`, or a schedule's.",
            "Raise `maxReplicas`, or relax `spec.slo`.",
        ),
        Reason.LOAD_UNKNOWN: (
            "Gateways cannot be scraped, or their metrics contradict each other. Counts stay, rise after a while, and never fall.",
            "Check the gateways that the message names: their pods, and NetworkPolicies between them and the autoscaler.",
        ),
        Reason.ADVISING: (
            "`autoscaling.mode` is `Advise`: the message has the counts that would be set.",
            "Set `mode: Auto` to apply them.",
        ),
        Reason.FROZEN: (
            "All scaling is frozen by `autoscaler.freeze` of the chart.",
            "Set `autoscaler.freeze` to false.",
        ),
        Reason.SET_ELSEWHERE: (
            "Another writer sets every pool's count: `spec.replicas`, `kubectl scale`, an HPA or KEDA. The autoscaler keeps it.",
            "Nothing, if this is intended. Otherwise remove `spec.replicas`. If a Deployment's count was written, remove "
            "its writer and "
            "write another count as the autoscaler: `kubectl patch deployment NAME --subresource=scale --type=merge "
            '--field-manager=fairlead-autoscaler -p \'{"spec":{"replicas":2}}\'`.',
        ),
    },
    ConditionType.SLO_MET: {
        Reason.WITHIN_TARGET: (
            "In the last five minutes, at least the target share of requests met each latency target.",
            "Nothing.",
        ),
        Reason.BELOW_TARGET: (
            "In the last five minutes, less than the target share of requests met a latency target.",
            "Check `Autoscaling`: instances may be starting, or at their `maxReplicas`. Otherwise use `fairlead explain route`.",
        ),
        Reason.TOO_FEW_REQUESTS: (
            "There were fewer than twenty requests in five minutes, too few for a share.",
            "Nothing.",
        ),
    },
    ConditionType.ACCEPTED: {
        Reason.VALID: ("The spec is valid, and the route has all names that it claims.", "Nothing."),
        Reason.NAMES_TAKEN: (
            "A model or an older route has a name of the route, or it begins with a namespace that holds models. Other names work.",
            "Use another name, or remove the one that the message gives.",
        ),
        Reason.INVALID_ROUTE: (
            "The spec passes the API server's schema, but this release cannot read it. Gateways serve the route as it was last.",
            "Correct the field that the message names. `fairlead lint` reports the same without a cluster.",
        ),
    },
    ConditionType.RESOLVED_REFS: {
        Reason.RESOLVED: ("Every target exists.", "Nothing."),
        Reason.MODEL_NOT_FOUND: (
            "No model here is called as the message says, targets first.",
            "Create it, or remove the name.",
        ),
        Reason.REF_NOT_PERMITTED: (
            "A model of another namespace does not list that of the route. Such targets stop the route; other such models "
            "are skipped.",
            "Add the namespace of the route to `spec.allowedRoutes` of the model that the message names, or remove it "
            "from the route.",
        ),
        Reason.NO_WEIGHT: ("All targets of the route, or of an override, have `weight: 0`: 503.", "Give one a weight."),
    },
}
"""The reasons of each condition: when it has them, and what to do."""


def condition_types() -> tuple[ConditionTypeInfo, ...]:
    return tuple(ConditionTypeInfo(kind, *texts) for kind, texts in _TYPES.items())


def reasons() -> tuple[ReasonInfo, ...]:
    return tuple(ReasonInfo(reason, kind, *texts) for kind, rows in _REASONS.items() for reason, texts in rows.items())


class ServingReason(StrEnum):
    """The `reason` of the condition `fairlead.io/Serving`, which the operator writes on pods."""

    ENGINE_HUNG = "EngineHung"
    ENGINE_ANSWERS = "EngineAnswers"


@dataclass(frozen=True, slots=True)
class ServingReasonInfo:
    """Documentation of a reason of the condition `fairlead.io/Serving`."""

    reason: ServingReason
    status: str
    when: str
    advice: str


def serving_reasons() -> tuple[ServingReasonInfo, ...]:
    """Returns the documentation of every reason of the condition `fairlead.io/Serving`."""
    return (
        ServingReasonInfo(
            ServingReason.ENGINE_HUNG,
            "False",
            "The engine takes connections and answers no request, by two gateways, or by one and its own probes. "
            "The message names the gateways.",
            "Nothing, if restarts are on: the operator deletes the pod after `operator.hungEngines.restartAfter`. "
            "Otherwise delete it. Read the engine's log first, if it is needed.",
        ),
        ServingReasonInfo(
            ServingReason.ENGINE_ANSWERS,
            "True",
            "The engine hung, and answers again.",
            "Nothing.",
        ),
    )
