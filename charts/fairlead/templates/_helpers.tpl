{{/* The prefix of all names: the release name, and "fairlead" unless it contains that. */}}
{{- define "fairlead.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "fairlead" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-fairlead" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The selector labels of a component, which can never change. Takes a list: root, component. */}}
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

{{/* Labels of a pod: those of its objects, and `global.podLabels`, without those that have a name of ours. */}}
{{- define "fairlead.podLabels" -}}
{{- $own := include "fairlead.labels" . | fromYaml -}}
{{- $more := dict -}}
{{- range $key, $value := (index . 0).Values.global.podLabels -}}
{{- if not (hasKey $own $key) -}}{{- $_ := set $more $key $value -}}{{- end -}}
{{- end -}}
{{ include "fairlead.labels" . }}
{{- include "fairlead.texts" $more }}
{{- end -}}

{{/*
The full name of an image. Takes a list: root, values of the image. A released chart has a file with
the registry and the digests of its images. Why not in the values: `--reuse-values` would keep those
of the release before.
*/}}
{{- define "fairlead.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $release := $root.Files.Get "files/release.yaml" | fromYaml -}}
{{- $registry := coalesce $root.Values.global.imageRegistry $image.registry $release.registry "serving.fairlead.io" -}}
{{- $place := printf "%s/%s" $registry $image.repository -}}
{{- $pinned := get (default dict $release.images) (base $image.repository) -}}
{{- $digest := default (ternary "" $pinned (ne $image.tag "")) $image.digest -}}
{{- if $digest -}}
{{- printf "%s@%s" $place $digest -}}
{{- else -}}
{{- printf "%s:%s" $place (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The value of FAIRLEAD_ENGINE_IMAGES. */}}
{{- define "fairlead.engineImages" -}}
{{- $sim := dict "registry" .Values.gateway.image.registry "repository" "sim" "tag" "" "digest" "" -}}
{{- $own := include "fairlead.image" (list . $sim) -}}
{{- $found := list -}}
{{- with .Values.engines.images.vllm }}{{ $found = append $found (printf "vllm=%s" .) }}{{ end -}}
{{- with .Values.engines.images.sglang }}{{ $found = append $found (printf "sglang=%s" .) }}{{ end -}}
{{- $found = append $found (printf "sim=%s" (default $own .Values.engines.images.sim)) -}}
{{- join "," $found -}}
{{- end -}}

{{/* The security context of every pod: Pod Security "restricted", for any user id. */}}
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
  - name: {{ . | quote }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* Labels or annotations with every value as text. Helm reads numbers of files as floats. */}}
{{- define "fairlead.texts" -}}
{{- range $key, $value := . }}
{{- if and (kindIs "float64" $value) (eq (floor $value) $value) (lt $value 1e15) }}{{ $value = int64 $value }}{{ end }}
{{ $key | quote }}: {{ $value | toString | quote }}
{{- end }}
{{- end -}}

{{/* Node placement and priority of pods. Takes the values of the component; it leaves out missing ones. */}}
{{- define "fairlead.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- include "fairlead.texts" . | trim | nindent 2 }}
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
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Spreads replicas over nodes and zones if possible. Takes a list: root, component. The scheduler ignores all spread
constraints on nodes that lack the label of any, so that zones, which many clusters do not have, are an affinity. */}}
{{- define "fairlead.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash] # pods that a rollout replaces do not count
    labelSelector:
      matchLabels:
        {{- include "fairlead.selector" . | nindent 8 }}
{{- if not (index (first .).Values (last .)).affinity }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 50
        podAffinityTerm:
          topologyKey: topology.kubernetes.io/zone
          labelSelector:
            matchLabels:
              {{- include "fairlead.selector" . | nindent 14 }}
{{- end }}
{{- end -}}

{{/* The name of the Secret with keys.yaml and pepper. */}}
{{- define "fairlead.keysSecret" -}}
{{- default (printf "%s-keys" (include "fairlead.name" .)) .Values.auth.keysSecret -}}
{{- end -}}

{{/* The name of the Secret with the URL of Redis; empty without Redis. */}}
{{- define "fairlead.redisSecret" -}}
{{- if and .Values.redis.enabled (or .Values.redis.urlSecret .Values.redis.url) -}}
{{- fail (printf "redis.%s names a Redis of your own: set redis.enabled to false" (ternary "urlSecret" "url" (ne .Values.redis.urlSecret ""))) -}}
{{- end -}}
{{- if and .Values.redis.urlSecret .Values.redis.url -}}
{{- fail "redis.url and redis.urlSecret are both set: set only one" -}}
{{- end -}}
{{- if .Values.redis.enabled -}}
{{- printf "%s-redis" (include "fairlead.name" .) -}}
{{- else -}}
{{- .Values.redis.urlSecret -}}
{{- end -}}
{{- end -}}

{{/* The environment variable with the URL of Redis; empty without Redis. */}}
{{- define "fairlead.redisVariable" -}}
{{- with include "fairlead.redisSecret" . -}}
- name: FAIRLEAD_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: url}}
{{- else with .Values.redis.url -}}
- {name: FAIRLEAD_REDIS_URL, value: {{ . | quote }}}
{{- end -}}
{{- end -}}

{{/* "yes" if indexers run: they need Redis. Else empty. */}}
{{- define "fairlead.hasIndexer" -}}
{{- if and .Values.indexer.enabled (include "fairlead.redisVariable" .) -}}
yes
{{- end -}}
{{- end -}}

{{/* "yes" if autoscalers run: engines of a fleet file have no workload to scale. Else empty. */}}
{{- define "fairlead.hasAutoscaler" -}}
{{- if and .Values.autoscaler.enabled (empty .Values.gateway.fleet.models) -}}
yes
{{- end -}}
{{- end -}}

{{/* "yes" if the operator reads from gateways which engines hang: those of a fleet file are not its own. Else empty. */}}
{{- define "fairlead.readsHungEngines" -}}
{{- if and .Values.operator.hungEngines.enabled (empty .Values.gateway.fleet.models) -}}
yes
{{- end -}}
{{- end -}}

{{/* A value of an existing Secret in base64, else the generated one. Takes a list: root, Secret, key, generated value. */}}
{{- define "fairlead.existingOrNew" -}}
{{- $root := index . 0 -}}
{{- $there := lookup "v1" "Secret" $root.Release.Namespace (index . 1) -}}
{{- $data := default dict $there.data -}}
{{- default (index . 3 | b64enc) (get $data (index . 2)) -}}
{{- end -}}
