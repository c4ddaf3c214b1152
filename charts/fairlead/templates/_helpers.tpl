{{/* Names begin with the release's, which may say "fairlead" already. */}}
{{- define "fairlead.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "fairlead" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-fairlead" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What pods of a component are found by; it can never be changed. Takes a list: the root, the component. */}}
{{- define "fairlead.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: fairlead
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "fairlead.labels" -}}
{{- $root := index . 0 -}}
{{ include "fairlead.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: fairlead
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image's whole name. Takes a list: the root, the image's values. */}}
{{- define "fairlead.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $place := printf "%s/%s" (default $image.registry $root.Values.global.imageRegistry) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $place $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $place (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The images of engines as the operator reads them. */}}
{{- define "fairlead.engineImages" -}}
{{- $gateway := .Values.gateway.image -}}
{{- $own := printf "%s/sim:%s" (default $gateway.registry .Values.global.imageRegistry) .Chart.AppVersion -}}
{{- $found := list -}}
{{- with .Values.engines.images.vllm }}{{ $found = append $found (printf "vllm=%s" .) }}{{ end -}}
{{- with .Values.engines.images.sglang }}{{ $found = append $found (printf "sglang=%s" .) }}{{ end -}}
{{- $found = append $found (printf "sim=%s" (default $own .Values.engines.images.sim)) -}}
{{- join "," $found -}}
{{- end -}}

{{/* What every pod has; it is what Pod Security "restricted" wants, for any user id. */}}
{{- define "fairlead.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "fairlead.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "fairlead.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* Where pods run. Takes the component's values; those that the component does not have are left out. */}}
{{- define "fairlead.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Replicas apart from one another, where there is room. Takes a list: the root, the component. */}}
{{- define "fairlead.spread" -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "fairlead.selector" $ | nindent 8 }}
  {{- end }}
{{- end -}}

{{/* The Secret with keys.yaml and pepper. */}}
{{- define "fairlead.keysSecret" -}}
{{- default (printf "%s-keys" (include "fairlead.name" .)) .Values.auth.keysSecret -}}
{{- end -}}

{{/* The Secret whose url names Redis; empty where there is none. */}}
{{- define "fairlead.redisSecret" -}}
{{- if and .Values.redis.enabled (or .Values.redis.urlSecret .Values.redis.url) -}}
{{- fail (printf "redis.%s names a Redis of your own: set redis.enabled to false" (ternary "urlSecret" "url" (ne .Values.redis.urlSecret ""))) -}}
{{- end -}}
{{- if and .Values.redis.urlSecret .Values.redis.url -}}
{{- fail "redis.url and redis.urlSecret are one too many: give one of them" -}}
{{- end -}}
{{- if .Values.redis.enabled -}}
{{- printf "%s-redis" (include "fairlead.name" .) -}}
{{- else -}}
{{- .Values.redis.urlSecret -}}
{{- end -}}
{{- end -}}

{{/* The variable that says where Redis is; empty where there is none. */}}
{{- define "fairlead.redisVariable" -}}
{{- with include "fairlead.redisSecret" . -}}
- name: FAIRLEAD_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ . }}, key: url}}
{{- else with .Values.redis.url -}}
- {name: FAIRLEAD_REDIS_URL, value: {{ . | quote }}}
{{- end -}}
{{- end -}}

{{/* Not empty where indexers run: what they write goes through Redis. */}}
{{- define "fairlead.indexed" -}}
{{- if and .Values.indexer.enabled (include "fairlead.redisVariable" .) -}}
yes
{{- end -}}
{{- end -}}

{{/* Not empty where autoscalers run: what stands in a fleet file has no workload to scale. */}}
{{- define "fairlead.scaled" -}}
{{- if and .Values.autoscaler.enabled (empty .Values.gateway.fleet.models) -}}
yes
{{- end -}}
{{- end -}}

{{/* One value of a Secret that is there already, in base64; a drawn one otherwise. Takes a list: the root, Secret, key, the drawn one. */}}
{{- define "fairlead.kept" -}}
{{- $root := index . 0 -}}
{{- $there := lookup "v1" "Secret" $root.Release.Namespace (index . 1) -}}
{{- $data := default dict $there.data -}}
{{- default (index . 3 | b64enc) (get $data (index . 2)) -}}
{{- end -}}
