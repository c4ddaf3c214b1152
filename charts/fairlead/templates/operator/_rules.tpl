{{/* Rights of the operator in the namespaces of models. Applying a new object takes both create and patch. */}}
{{- define "fairlead.operatorRules" -}}
- apiGroups: [serving.fairlead.io]
  resources: [modeldeployments]
  verbs: [get, list, watch, patch] # guard.yaml restricts patch to spec.replicas
- apiGroups: [serving.fairlead.io]
  resources: [modelroutes, modeladapters]
  verbs: [list, watch]
- apiGroups: [serving.fairlead.io]
  resources: [modeldeployments/status, modelroutes/status, modeladapters/status]
  verbs: [patch]
# Some clusters require this right for owner references that block a foreground deletion.
- apiGroups: [serving.fairlead.io]
  resources: [modeldeployments/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# The operator creates no pods itself.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- if include "fairlead.readsHungEngines" . }}
# Pods whose engine hangs are marked and deleted. guard.yaml restricts both to pods of models.
- apiGroups: [""]
  resources: [pods]
  verbs: [delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
{{- end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
