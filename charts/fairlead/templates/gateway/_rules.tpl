{{/* What the gateway reads where models are: it writes nothing. */}}
{{- define "fairlead.gatewayRules" -}}
- apiGroups: [serving.fairlead.io]
  resources: [modeldeployments]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- end -}}
