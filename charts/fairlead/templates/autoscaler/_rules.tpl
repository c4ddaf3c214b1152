{{/* What the autoscaler does where models are. */}}
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
# Their number alone; of this kind the API server does not take it by the scale subresource.
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get, list, watch, patch]
# Which of them is to go first stands in an annotation, and which of them sleeps.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
