{{/* Variables of all processes that read models: who has a client name, and who may name endpoints. Takes the root. */}}
{{- define "fairlead.modelVariables" -}}
{{- $names := list -}}
{{- range $name, $model := .Values.clientNames }}
{{- $names = append $names (printf "%s=%s" $name $model) }}
{{- end }}
{{- with $names }}
- {name: FAIRLEAD_CLIENT_NAMES, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.externalEngines.namespaces }}
- {name: FAIRLEAD_ENDPOINT_NAMESPACES, value: {{ join "," . | quote }}}
{{- end }}
{{- end -}}

{{/*
Rights of gateways and indexers in the namespaces of models: read only. They judge endpoints by the
addresses of Services, so that they read Services only where models may name endpoints.
Takes a list: root, component.
*/}}
{{- define "fairlead.fleetRules" -}}
- apiGroups: [serving.fairlead.io]
  resources: [modeldeployments]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods{{ if (index . 0).Values.externalEngines.namespaces }}, services{{ end }}]
  verbs: [list, watch]
{{- end -}}

{{/*
The ServiceAccount of a component that watches the fleet, and its rights: none if the fleet is a file.
Takes a list: root, component.
*/}}
{{- define "fairlead.fleetAccount" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s-%s" (include "fairlead.name" $root) (index . 1) -}}
{{- $whole := printf "%s-%s" $root.Release.Namespace $name -}}
{{- $places := $root.Values.watchNamespaces -}}
{{- $subjects := list (dict "kind" "ServiceAccount" "name" $name "namespace" $root.Release.Namespace) -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "fairlead.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- if empty $root.Values.gateway.fleet.models }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $whole }}
  labels:
    {{- include "fairlead.labels" . | nindent 4 }}
rules:
  - apiGroups: [serving.fairlead.io]
    resources: [acceleratorclasses]
    verbs: [list, watch]
  {{- if not $places }}
  {{- include "fairlead.fleetRules" . | nindent 2 }}
  {{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $whole }}
  labels:
    {{- include "fairlead.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $whole }}
subjects:
  {{- toYaml $subjects | nindent 2 }}
{{- range $place := $places }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}-fleet
  namespace: {{ $place }}
  labels:
    {{- include "fairlead.labels" $ | nindent 4 }}
rules:
  {{- include "fairlead.fleetRules" $ | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}-fleet
  namespace: {{ $place }}
  labels:
    {{- include "fairlead.labels" $ | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}-fleet
subjects:
  {{- toYaml $subjects | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}
