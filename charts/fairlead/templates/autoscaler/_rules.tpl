{{/* Rights of the autoscaler in the namespaces of models. */}}
{{- define "fairlead.autoscalerRules" -}}
- apiGroups: [serving.fairlead.io]
  resources: [modeldeployments]
  verbs: [list, watch]
- apiGroups: [serving.fairlead.io]
  resources: [modeldeployments/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
# For the replica count. The API server does not accept it by the scale subresource for this kind.
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get, list, watch, patch]
# For two annotations: the deletion cost and the sleep state.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
