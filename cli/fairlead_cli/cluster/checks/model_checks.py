"""The checks of models, with meaning and remedy: a part of the catalogue."""

from fairlead_cli.cluster.checks.check import Check, CheckSection, CheckStage

MODEL_CHECKS = (
    Check(
        "model-observed",
        CheckSection.MODELS,
        CheckStage.POST,
        "the operator has seen every change of a model",
        "`status.observedGeneration` is behind `metadata.generation`: a change waits, or no operator watches the namespace.",
        "See the section of the operator; compare `watchNamespaces` with the namespace of the model.",
    ),
    Check(
        "model-image",
        CheckSection.MODELS,
        CheckStage.POST,
        "engine images can be pulled",
        "The condition says `ImagePullFailed`: the engine's image does not exist, or the node may not fetch it.",
        "Check `engine.image`, `engine.imagePullSecrets` and the way to the registry.",
    ),
    Check(
        "model-capacity",
        CheckSection.MODELS,
        CheckStage.POST,
        "nodes have room for engines",
        "The condition says `InsufficientCapacity`: no node has the devices, processors or memory that an "
        "engine's pod asks for.",
        "Add nodes, lower replicas or parallelism, or check the AcceleratorClass's `resource`, `nodeSelector` "
        "and `tolerations`.",
    ),
    Check(
        "model-references",
        CheckSection.MODELS,
        CheckStage.POST,
        "what models refer to exists",
        "A Secret, claim or AcceleratorClass that a model names is not there; all are listed, with your rights and "
        "before a pod waits. Or the condition says so: with `UnboundClaim` the claim exists and has no volume. The "
        "operator may not read Secrets, so its condition `MissingSecret` needs a pod that has a node.",
        "Create what the message names, in the model's namespace. `kubectl describe pvc NAME` explains a `Pending` claim.",
    ),
    Check(
        "model-endpoint-secrets",
        CheckSection.MODELS,
        CheckStage.POST,
        "gateways have the Secrets that endpoints name",
        "`tokenSecretKeyRef` and `caSecretKeyRef` of endpoints name Secrets in the namespace of the installation. "
        "Gateways mount those that the chart's `externalEngines.secrets` gives to the namespace of the model. Without "
        "one, requests for the endpoint fail. Only the names of entries are looked at.",
        "Make the Secret or its entry, in the namespace of the installation. If gateways do not mount it, [add it to "
        "`externalEngines.secrets`](../how-to/external-engines.md#endpoints-that-ask-for-a-key) and upgrade.",
    ),
    Check(
        "model-admission",
        CheckSection.MODELS,
        CheckStage.POST,
        "namespaces take the models' objects",
        "The condition says `QuotaExceeded`, `PolicyRefused` or `Forbidden`: a quota, a policy or missing rights "
        "keep objects out.",
        "The message names the quota, policy or right. The instances that run already stay.",
    ),
    Check(
        "model-stalled",
        CheckSection.MODELS,
        CheckStage.POST,
        "no model is stalled otherwise",
        "The condition `Stalled` has one of the other [reasons](conditions.md#reasons): it makes no progress until "
        "the cause is removed.",
        "`fairlead status NAME` says what to do about its reason; all of them stand in "
        "[conditions](conditions.md#reasons).",
    ),
    Check(
        "model-ready",
        CheckSection.MODELS,
        CheckStage.POST,
        "models that are not stalled serve",
        "A model is not ready without being stalled: instances are missing (`Degraded`, `NoInstance`, "
        "`NoEndpoint`), or still come up (`Starting`, which is a warning).",
        "`fairlead status NAME` shows its pods and what they wait for.",
    ),
    Check(
        "model-name",
        CheckSection.MODELS,
        CheckStage.POST,
        "models' names are their own",
        "Two models of different namespaces have one name: who says the bare name gets its owner (`NameTaken`).",
        "Let clients say `namespace/name`, or rename one of the two.",
    ),
)
