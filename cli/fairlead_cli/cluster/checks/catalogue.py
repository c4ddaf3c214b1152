"""All checks of ``fairlead check``: a closed list with meaning and remedy.

docs/reference/checks.md is generated from it, so every check has an anchor there. `analyzers` holds
the functions.
"""

from functools import partial
from typing import Final

from fairlead_cli.cluster.checks.analyzers import autoscaler, gateway, indexer, models, operator, platform, workloads
from fairlead_cli.cluster.checks.check import OLDEST_KUBERNETES, Check, CheckSection, CheckStage
from fairlead_cli.cluster.components import AUTOSCALER, GATEWAY, INDEXER, OPERATOR

_in_api = partial(Check, CheckSection.API)
_in_permissions = partial(Check, CheckSection.PERMISSIONS)
_in_cluster = partial(Check, CheckSection.CLUSTER)
_in_crds = partial(Check, CheckSection.CRDS)
_of_operator = partial(Check, CheckSection.OPERATOR)
_of_gateway = partial(Check, CheckSection.GATEWAY)
_of_indexer = partial(Check, CheckSection.INDEXER)
_of_autoscaler = partial(Check, CheckSection.AUTOSCALER)
_of_models = partial(Check, CheckSection.MODELS)
_in_security = partial(Check, CheckSection.SECURITY)
_in_versions = partial(Check, CheckSection.VERSIONS)

CHECKS: Final = (
    _in_api(
        "api-reachable",
        platform.check_api_reachable,
        "the API server answers",
        "There is a kubeconfig, its context leads to an API server, and that accepts us. Nothing else can be "
        "looked at without it.",
        "The error names the kubeconfig and the context that were "
        "taken. Log in again if a token ran out; choose another context by `--context`.",
        stage=CheckStage.BOTH,
    ),
    _in_api(
        "api-version",
        platform.check_api_version,
        f"Kubernetes is {OLDEST_KUBERNETES[0]}.{OLDEST_KUBERNETES[1]} or newer",
        "Gateways wait before they go by the `sleep` of preStop, which clusters have from 1.30 on.",
        "Upgrade the cluster. `oci://` models need 1.35.",
        stage=CheckStage.BOTH,
    ),
    _in_api(
        "clock-skew",
        platform.check_clock_skew,
        "this machine's clock agrees with the API server's",
        "Ages that are printed, and whether a lease is fresh, are reckoned with the API server's clock. A "
        "machine that is far off is also refused where tokens and certificates have times.",
        "Set the clock of this machine (NTP).",
        stage=CheckStage.BOTH,
    ),
    _in_permissions(
        "rights-read",
        platform.check_read_permissions,
        "you may read what the checks look at",
        "What you may not read cannot be judged; those checks say so instead of passing.",
        "Ask for `get` and `list` on what is named. `get` and `create` on `pods/portforward` are the way to "
        "what gateways and operators say of themselves.",
        stage=CheckStage.BOTH,
    ),
    _in_permissions(
        "rights-install",
        platform.check_install_permissions,
        "you may create what the chart holds",
        "helm creates as you: CRDs, roles, and objects in the namespace of the installation.",
        "Install as a cluster administrator, or have one install it.",
        stage=CheckStage.PRE,
    ),
    _in_cluster(
        "pod-security",
        platform.check_pod_security,
        "the namespace takes the control plane's pods",
        "A pod as the chart makes it was sent to the API server as a dry run, through all of its admission. It "
        "satisfies Pod Security `restricted`; policies of your own may want more. Without the namespace there is "
        "nothing to ask.",
        "Read the refusal: it names the policy. Labels, annotations, nodes and resources can be set in the "
        "chart's values.",
        stage=CheckStage.PRE,
    ),
    _in_cluster(
        "quota",
        platform.check_quotas,
        "no quota is used up",
        "A ResourceQuota that is used up in the namespace of the installation, or in one that has models, keeps "
        "new pods out: nothing can be replaced, scaled or rolled out there.",
        "Raise the quota (`kubectl describe quota -n NAMESPACE`), or ask for less.",
        stage=CheckStage.BOTH,
    ),
    _in_cluster(
        "accelerators",
        platform.check_accelerators,
        "a node offers an accelerator",
        "Engines ask for devices by the resource name of their AcceleratorClass, such as `nvidia.com/gpu`. "
        "Without a node that offers one, only models on processors and simulated engines can run.",
        "Install the device plugin of your accelerators, or go on, if engines run elsewhere or nodes come by an "
        "autoscaler.",
        stage=CheckStage.PRE,
    ),
    _in_cluster(
        "storage-class",
        platform.check_storage_class,
        "there is a default StorageClass",
        "PersistentVolumeClaims that name no class get it; caches for weights (`model.cache`) are such claims. "
        "Without claims none is needed.",
        "Mark one with the annotation `storageclass.kubernetes.io/is-default-class`, or name a class in your claims.",
        stage=CheckStage.PRE,
    ),
    _in_cluster(
        "leader-worker-set",
        platform.check_leader_worker_sets,
        "LeaderWorkerSets are known",
        "Instances that span several nodes (`parallelism.nodes` over 1) are LeaderWorkerSets. Others need none.",
        "Install LeaderWorkerSet 0.8 or newer, or keep instances on one node.",
        stage=CheckStage.BOTH,
    ),
    _in_crds(
        "crd-names",
        platform.check_crd_names,
        "no other product has our CRDs' names",
        "A CRD of the group `serving.fairlead.io` from another product would be taken for ours, and "
        "helm leaves CRDs alone that are there.",
        "Find out whose it is (`kubectl get crd NAME -o yaml`). If it is an older Fairlead's, see "
        "[crd-schema](#crd-schema).",
        stage=CheckStage.PRE,
    ),
    _in_crds(
        "crd-installed",
        platform.check_crds_installed,
        "the CRDs are installed",
        "Every kind of this release is known to the API server, established, and served in its version.",
        "`kubectl apply --server-side --force-conflicts -f charts/fairlead/crds`",
    ),
    _in_crds(
        "crd-schema",
        platform.check_crd_schemas,
        "the CRDs have this release's schema",
        "`helm upgrade` never touches CRDs. With an older schema the API server refuses or drops fields that "
        "this release has: the check fails. A newer schema is a warning: after a rollback it stays, else your "
        "command line is the older part.",
        "`kubectl apply --server-side --force-conflicts -f charts/fairlead/crds`, from the newest release that was "
        "installed.",
    ),
    _of_operator(
        "operator-installed",
        operator.check_installed,
        "one operator is installed",
        "It is found by the chart's labels. Of two that watch the same namespaces, one manages a model "
        "and the other leaves it alone: which one is a matter of chance.",
        "`helm install fairlead charts/fairlead --namespace fairlead --create-namespace`; of two, uninstall one, "
        "or give each its `watchNamespaces`.",
    ),
    _of_operator(
        "operator-ready",
        workloads.for_component(OPERATOR)(workloads.check_pods_ready),
        "operator pods are ready",
        "While no operator runs, models serve on, but no change of theirs is carried out and no status is written.",
        "Fix what its pods wait for; `kubectl describe pod` and `kubectl logs` of them say more.",
    ),
    _of_operator(
        "operator-leader",
        operator.check_leader,
        "an operator leads",
        "Of several replicas the one that holds the Lease `fairlead-operator` works. A lease that is not renewed "
        "means that none works.",
        "Look at the logs of the operator's pods for why they cannot take the lease: the API server, or rights "
        "on leases.",
    ),
    _of_operator(
        "operator-watches",
        operator.check_watches,
        "the operator hears the cluster",
        "The leader's own metrics report the age of the last event of each watch; the API server sends "
        "something every minute.",
        "A frozen watch ends the operator by its liveness probe within minutes. If it stays, look at its log for "
        "what the API server refuses.",
    ),
    _of_operator(
        "operator-rights",
        partial(workloads.check_permissions, component=OPERATOR),
        "the operator may do what it must",
        "The API server was asked, for the operator's service account, about each right of its chart. A right "
        "that is gone stalls models with `Forbidden`, or keeps the operator from watching a kind.",
        "`helm upgrade` restores the roles; where another tool manages them, compare with "
        "`charts/fairlead/templates/operator/_rules.tpl`.",
    ),
    _of_gateway(
        "gateway-installed",
        gateway.check_installed,
        "a gateway is installed",
        "It is found by the chart's labels.",
        "`helm install fairlead charts/fairlead --namespace fairlead --create-namespace`",
    ),
    _of_gateway(
        "gateway-ready",
        workloads.for_component(GATEWAY)(workloads.check_pods_ready),
        "gateway pods are ready",
        "A gateway is ready once it knows its fleet. While none is, no request is answered.",
        "Fix what its pods wait for; `kubectl describe pod` and `kubectl logs` of them say more.",
    ),
    _of_gateway(
        "gateway-keys",
        workloads.for_component(GATEWAY)(workloads.check_secrets),
        "the gateways' Secrets are complete",
        "Gateways take API keys (`keys.yaml` and `pepper`), the secret of prefix hashes, the management token and the "
        "URL of Redis from Secrets. Pods that run keep what they have read; a new one does not start without. Only "
        "the names of entries are looked at.",
        "Bring the Secret back (`auth.keysSecret`, see [keys](../how-to/api-keys.md)); `helm upgrade` makes one with "
        "a new first key where it was the chart's own.",
    ),
    _of_gateway(
        "gateway-rights",
        partial(workloads.check_permissions, component=GATEWAY),
        "gateways may read the fleet",
        "The API server was asked, for the gateways' service account, about each right of its chart. Without one "
        "the fleet is never read, or grows old.",
        "`helm upgrade` restores the roles; where another tool manages them, compare with "
        "`charts/fairlead/templates/_fleet.tpl`.",
    ),
    _of_gateway(
        "gateway-fleet",
        gateway.check_fleet,
        "gateways know the present fleet",
        "A gateway that cannot follow the cluster serves the last fleet it knew: new engines get nothing, and "
        "ones that are gone cost retries. Its own notes say so, and since when.",
        "The note names the kind and the API server's words: rights, a NetworkPolicy, or the API server itself.",
    ),
    _of_gateway(
        "redis",
        gateway.check_redis,
        "Redis answers the gateways",
        "Gateways share decisions through Redis. Without it each decides alone: requests are answered, and hit "
        "fewer caches.",
        "Look at the Redis that the Secret's `url` names: its pod where it is the chart's, else address, "
        "password, TLS and NetworkPolicies.",
    ),
    _of_gateway(
        "gateway-index",
        gateway.check_index,
        "gateways' indexes are true",
        "Where engines publish KV events, gateways compare the index with the cached tokens of answers. An index that "
        "differs is put in quarantine. An engine that publishes nothing is named, as is an index that is not used. "
        "Requests are answered, and hit fewer caches.",
        "A quarantine ends by itself; one that comes back means another engine's events, or a proxy before several engines. "
        "For a silent engine look at its `--kv-events-config` and NetworkPolicies. "
        "An unused index is switched off by `FAIRLEAD_LINKS=off`, or gateways and indexers have different secrets.",
    ),
    _of_gateway(
        "gateway-notes",
        gateway.check_notes,
        "gateways report nothing else",
        "What gateways say of themselves in `/readyz` besides the above, such as engines that do not tell their "
        "metrics.",
        "Each note says what is degraded and why; see [management port](management.md).",
    ),
    _of_gateway(
        "gateway-certificate",
        gateway.check_certificate,
        "the gateway's certificate is good for two weeks",
        "The certificate in the Secret of `gateway.tls.secret`. Clients refuse one that has run out.",
        "Renew it, or look at what should have done so (cert-manager).",
    ),
    _of_indexer(
        "indexer-installed",
        indexer.check_installed,
        "an indexer is installed where gateways have a Redis",
        "A gateway that starts takes from Redis what an indexer left there. Without an indexer it begins with what engines "
        "replay, and `fairlead index` shows nothing.",
        "Leave `indexer.enabled` on, or run one of your own (`python -m fairlead_kvstore --kube`).",
    ),
    _of_indexer(
        "indexer-ready",
        workloads.for_component(INDEXER)(workloads.check_pods_ready),
        "indexer pods are ready",
        "An indexer is ready once it knows its fleet and has reached Redis. While none is, requests are answered, and "
        "hit fewer caches.",
        "`/readyz` says what it waits for; `kubectl describe pod` and `kubectl logs` of them say more.",
    ),
    _of_indexer(
        "indexer-secrets",
        workloads.for_component(INDEXER)(workloads.check_secrets),
        "the indexers' Secrets are complete",
        "Indexers take the gateways' secret of prefix hashes and the URL of Redis from Secrets. A pod that starts "
        "needs both. Only the names of entries are looked at.",
        "Bring the Secret back; `helm upgrade` makes a new one where it was the chart's own. Then restart gateways and "
        "indexers, since both must have the same.",
    ),
    _of_indexer(
        "indexer-rights",
        partial(workloads.check_permissions, component=INDEXER),
        "indexers may read the fleet",
        "The API server was asked, for the indexers' service account, about each right of its chart. Without one "
        "engines that come are never read.",
        "`helm upgrade` restores the roles; where another tool manages them, compare with "
        "`charts/fairlead/templates/_fleet.tpl`.",
    ),
    _of_indexer(
        "indexer-leads",
        indexer.check_leadership,
        "an indexer writes the index of each model",
        "Their own metrics say which models each knows, and which it reads, by a lease in Redis. What engines of the "
        "others cache and throw out is not seen.",
        "See [redis](#redis): an indexer without Redis gets no lease. Their logs say what else keeps them from it.",
    ),
    _of_indexer(
        "indexer-hears",
        indexer.check_connections,
        "indexers hear engines and Redis",
        "Their own metrics say how many engines are to be read, and how many are connected. Of one that is not, it is "
        "unknown what it has cached; while Redis is away, changes wait.",
        "`fairlead index stats` names the engines and says why. Let the indexer reach their HTTP, event and replay "
        "ports, and engines publish events ([index](../concepts/kv-index.md)).",
    ),
    _of_autoscaler(
        "autoscaler-installed",
        autoscaler.check_installed,
        "an autoscaler is installed where models want one",
        "Models with `autoscaling.mode` `Auto` or `Advise` keep their replica counts while there is none.",
        "Set `autoscaler.enabled` to true, or the models' mode to `Disabled`.",
    ),
    _of_autoscaler(
        "autoscaler-ready",
        workloads.for_component(AUTOSCALER)(workloads.check_pods_ready),
        "autoscaler pods are ready",
        "While none is ready, models keep their replica counts, and none wakes from zero.",
        "`/readyz` says what it waits for; `kubectl describe pod` and `kubectl logs` of them say more.",
    ),
    _of_autoscaler(
        "autoscaler-secrets",
        workloads.for_component(AUTOSCALER)(workloads.check_secrets),
        "the autoscalers' Secrets are complete",
        "Autoscalers take the gateways' management token from a Secret. Only the names of entries are looked at.",
        "Bring the Secret back; `helm upgrade` makes a new one where it was the chart's own. Then restart gateways and "
        "autoscalers, since both must have the same.",
    ),
    _of_autoscaler(
        "autoscaler-rights",
        partial(workloads.check_permissions, component=AUTOSCALER),
        "autoscalers may read and scale models",
        "The API server was asked, for the autoscalers' service account, about each right of its chart.",
        "`helm upgrade` restores the roles; where another tool manages them, compare with "
        "`charts/fairlead/templates/autoscaler`.",
    ),
    _of_autoscaler(
        "autoscaler-leads",
        autoscaler.check_leader,
        "one autoscaler leads and writes",
        "The leader holds a lease and writes replica counts; the others wait. A frozen one writes nothing.",
        "Their logs say why none gets the lease. `autoscaler.freeze: false` ends a freeze.",
    ),
    _of_autoscaler(
        "autoscaler-hears",
        autoscaler.check_gateways,
        "autoscalers hear the gateways",
        "Load and latencies come from the gateways' management ports. Without them an autoscaler holds, and then "
        "adds replicas cautiously.",
        "Let the autoscaler reach the gateways' management port; `kubectl logs` of it names those that do not answer.",
    ),
    _of_models(
        "model-observed",
        models.check_observed,
        "the operator has seen every change of a model",
        "`status.observedGeneration` is behind `metadata.generation`: a change waits, or no operator watches the namespace.",
        "See the section of the operator; compare `watchNamespaces` with the namespace of the model.",
    ),
    _of_models(
        "model-image",
        models.stalled_analyzer("model-image"),
        "engine images can be pulled",
        "The condition says `ImagePullFailed`: the engine's image does not exist, or the node may not fetch it.",
        "Check `engine.image`, `engine.imagePullSecrets` and the way to the registry.",
    ),
    _of_models(
        "model-capacity",
        models.stalled_analyzer("model-capacity"),
        "nodes have room for engines",
        "The condition says `InsufficientCapacity`: no node has the devices, processors or memory that an "
        "engine's pod asks for.",
        "Add nodes, lower replicas or parallelism, or check the AcceleratorClass's `resource`, `nodeSelector` "
        "and `tolerations`.",
    ),
    _of_models(
        "model-references",
        models.check_references,
        "what models refer to exists",
        "A Secret, claim or AcceleratorClass that a model names is not there; all are listed, with your rights and "
        "before a pod waits. Or the condition says so: with `UnboundClaim` the claim exists and has no volume. The "
        "operator may not read Secrets, so its condition `MissingSecret` needs a pod that has a node.",
        "Create what the message names, in the model's namespace. `kubectl describe pvc NAME` explains a `Pending` claim.",
    ),
    _of_models(
        "model-endpoint-secrets",
        models.check_endpoint_secrets,
        "gateways have the Secrets that endpoints name",
        "`tokenSecretKeyRef` and `caSecretKeyRef` of endpoints name Secrets in the namespace of the installation. "
        "Gateways mount those that the chart's `externalEngines.secrets` gives to the namespace of the model. Without "
        "one, requests for the endpoint fail. Only the names of entries are looked at.",
        "Make the Secret or its entry, in the namespace of the installation. If gateways do not mount it, [add it to "
        "`externalEngines.secrets`](../how-to/external-engines.md#endpoints-that-ask-for-a-key) and upgrade.",
    ),
    _of_models(
        "model-admission",
        models.stalled_analyzer("model-admission"),
        "namespaces take the models' objects",
        "The condition says `QuotaExceeded`, `PolicyRefused` or `Forbidden`: a quota, a policy or missing rights "
        "keep objects out.",
        "The message names the quota, policy or right. The instances that run already stay.",
    ),
    _of_models(
        "model-stalled",
        models.stalled_analyzer("model-stalled"),
        "no model is stalled otherwise",
        "The condition `Stalled` has one of the other [reasons](conditions.md#reasons): it makes no progress until "
        "the cause is removed.",
        "`fairlead status NAME` says what to do about its reason; all of them stand in "
        "[conditions](conditions.md#reasons).",
    ),
    _of_models(
        "model-ready",
        models.check_ready,
        "models that are not stalled serve",
        "A model is not ready without being stalled: instances are missing (`Degraded`, `NoInstance`, "
        "`NoEndpoint`), or still come up (`Starting`, which is a warning).",
        "`fairlead status NAME` shows its pods and what they wait for.",
    ),
    _of_models(
        "model-name",
        models.check_names,
        "models' names are their own",
        "Two models of different namespaces have one name: who says the bare name gets its owner (`NameTaken`).",
        "Let clients say `namespace/name`, or rename one of the two.",
    ),
    _in_security(
        "network-policies",
        platform.check_network_policies,
        "NetworkPolicies guard the control plane",
        "Engines ask for no key, and Redis only for a password: the chart's NetworkPolicies let in the components that "
        "need them. Whether the cluster's network enforces them cannot be seen from here.",
        "Leave `networkPolicies.enabled` and `engines.networkPolicies` on, or have policies of your own.",
    ),
    _in_security(
        "disruption-budgets",
        platform.check_disruption_budgets,
        "disruption budgets leave room",
        "A PodDisruptionBudget without room keeps `kubectl drain` waiting; several replicas without one may all "
        "go at once.",
        "Wait until all pods are ready; a budget that never has room needs more replicas or a larger `maxUnavailable`.",
    ),
    _in_security(
        "keys-asked",
        gateway.check_authentication,
        "gateways ask for keys",
        "Gateways that run with `--insecure` answer every caller.",
        "Set `auth.enabled` to true, unless something in front of the gateways asks.",
    ),
    _in_versions(
        "images",
        workloads.check_images,
        "the control plane's images can be pulled",
        "A pod of operator, gateway, autoscaler, indexer or Redis waits for its image.",
        "Check `global.imageRegistry`, `global.imagePullSecrets` and the tag.",
    ),
    _in_versions(
        "version-skew",
        platform.check_version_skew,
        "components and command line are of one release",
        "Neighbouring releases work together, so that upgrades need no pause; longer than that they should not "
        "stay apart.",
        "Upgrade the command line, then the CRDs, then the chart with `helm upgrade`.",
    ),
)
"""All checks in the order of output."""
