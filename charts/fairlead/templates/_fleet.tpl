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

{{/* Folder of the Secrets of engines: each has a folder of its name, with a file for each key. */}}
{{- define "fairlead.engineSecretsFolder" -}}/etc/fairlead/engine-secrets{{- end -}}

{{/* Mounts of the Secrets that gateway.fleet.models name. Gateways and indexers read them. Takes the root. */}}
{{- define "fairlead.engineSecretMounts" -}}
{{- include "fairlead.checkEngineSecrets" . -}}
{{- range $number, $name := uniq .Values.gateway.fleet.secrets }}
- {name: engine-secret-{{ $number }}, mountPath: {{ include "fairlead.engineSecretsFolder" $ }}/{{ $name }}, readOnly: true}
{{- end }}
{{- end -}}

{{/* Volumes of these mounts. Takes the root. */}}
{{- define "fairlead.engineSecretVolumes" -}}
{{- range $number, $name := uniq .Values.gateway.fleet.secrets }}
- name: engine-secret-{{ $number }}
  secret: {secretName: {{ $name }}}
{{- end }}
{{- end -}}

{{/*
Mounts of the Secrets that endpoints of ModelDeployments name, each below the namespace of the models that may.
Only gateways send tokens. Takes the root.
*/}}
{{- define "fairlead.endpointSecretMounts" -}}
{{- include "fairlead.checkEndpointSecrets" . -}}
{{- range $namespace, $names := .Values.externalEngines.secrets }}
{{- range $name := uniq $names }}
- {name: {{ include "fairlead.endpointSecretVolume" (list $namespace $name) }}, mountPath: /etc/fairlead/endpoint-secrets/{{ $namespace }}/{{ $name }}, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* Volumes of these mounts. A Secret that does not exist yet does not keep gateways from starting. Takes the root. */}}
{{- define "fairlead.endpointSecretVolumes" -}}
{{- range $namespace, $names := .Values.externalEngines.secrets }}
{{- range $name := uniq $names }}
- name: {{ include "fairlead.endpointSecretVolume" (list $namespace $name) }}
  secret: {secretName: {{ $name }}, optional: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* Name of such a volume. Takes a list: namespace, Secret. */}}
{{- define "fairlead.endpointSecretVolume" -}}
endpoint-{{ printf "%s/%s" (index . 0) (index . 1) | sha256sum | trunc 12 }}
{{- end -}}

{{/* Fails if no model can name a Secret of endpoints. Takes the root. */}}
{{- define "fairlead.checkEndpointSecrets" -}}
{{- if and .Values.externalEngines.secrets .Values.gateway.fleet.models -}}
{{- fail "externalEngines.secrets has no effect with gateway.fleet.models: name the Secrets in gateway.fleet.secrets" -}}
{{- end -}}
{{- $allowed := .Values.externalEngines.namespaces -}}
{{- range $namespace, $names := .Values.externalEngines.secrets -}}
{{- if not (or (has $namespace $allowed) (has "*" $allowed)) -}}
{{- fail (printf "externalEngines.secrets: models of the namespace %s may not name endpoints: add it to externalEngines.namespaces" $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fails if a model names a key that no process would find. Takes the root. */}}
{{- define "fairlead.checkEngineSecrets" -}}
{{- $fleet := .Values.gateway.fleet -}}
{{- if and $fleet.secrets (empty $fleet.models) -}}
{{- fail "gateway.fleet.secrets has no effect without gateway.fleet.models: no ModelDeployment names a key of engines" -}}
{{- end -}}
{{- range $model := $fleet.models -}}
{{- range $part := concat (list $model) ($model.instances | default list) -}}
{{- if ($part.auth | default dict).tokenEnv -}}
{{- fail (printf "gateway.fleet.models: %s: gateways of the chart have no variable %s: write tokenFile, and name the Secret in gateway.fleet.secrets" $model.name $part.auth.tokenEnv) -}}
{{- end -}}
{{- range $file := list ($part.auth | default dict).tokenFile ($part.tls | default dict).caFile -}}
{{- $folder := printf "%s/" (include "fairlead.engineSecretsFolder" $) -}}
{{- if and $file (hasPrefix $folder $file) (not (has (trimPrefix $folder $file | dir) $fleet.secrets)) -}}
{{- fail (printf "gateway.fleet.models: %s: gateway.fleet.secrets does not have the Secret of %s" $model.name $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Rights of gateways and indexers in the namespaces of models: read only. They judge endpoints by the
addresses of Services, so that they read Services only where models may name endpoints.
Takes a list: root, component.
*/}}
{{- define "fairlead.fleetRules" -}}
- apiGroups: [serving.fairlead.io]
  resources: [modeldeployments{{ if eq (index . 1) "gateway" }}, modelroutes, modeladapters{{ end }}]
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
    resources: [acceleratorclasses{{ if and $root.Values.auth.enabled (eq (index . 1) "gateway") }}, modeltenants{{ end }}]
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
  namespace: {{ $place | quote }}
  labels:
    {{- include "fairlead.labels" $ | nindent 4 }}
rules:
  {{- include "fairlead.fleetRules" $ | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}-fleet
  namespace: {{ $place | quote }}
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
