{{/* The release's name, with the chart's in it once. */}}
{{- define "finetune.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "finetune.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune.labels" -}}
{{ include "finetune.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* An image reference; the argument is (list image appVersion). */}}
{{- define "finetune.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- end -}}
{{- end }}

{{/* The operator's settings as it reads them. */}}
{{- define "finetune.settings" -}}
{{- $trainer := include "finetune.image" (list .Values.trainerImage .Chart.AppVersion) -}}
{{- $policy := deepCopy (.Values.settings.networkPolicy | default dict) -}}
{{- if not (hasKey $policy "enabled") -}}{{- $_ := set $policy "enabled" true -}}{{- end -}}
{{- $labels := include "finetune.selector" . | fromYaml -}}
{{- $_ := set $policy "operator" (dict "namespace" .Release.Namespace "labels" $labels) -}}
{{- $settings := merge (dict "networkPolicy" $policy) (deepCopy .Values.settings) (dict "trainerImage" $trainer) -}}
{{- if not (include "finetune.makesRuntime" .) -}}{{- $_ := set $settings "createDefaultRuntime" false -}}{{- end -}}
{{- if .Values.leaderElection.enabled -}}
{{- $lease := dict "namespace" .Release.Namespace "name" (include "finetune.name" .) -}}
{{- $settings = merge $settings (dict "leaderElection" (merge $lease (omit .Values.leaderElection "enabled"))) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end }}

{{/* Whether the operator makes the first FineTuneRuntime: only one that works for the whole cluster may. */}}
{{- define "finetune.makesRuntime" -}}
{{- if and (not .Values.settings.namespaces) (ne (toString .Values.settings.createDefaultRuntime) "false") -}}true{{- end -}}
{{- end }}

{{/* What the operator may do where jobs are: what it needs always, and what its settings turn on. */}}
{{- define "finetune.jobRules" -}}
{{- $rules := (.Files.Get "files/rbac-rules.yaml" | fromYaml).jobs -}}
{{- $settings := include "finetune.settings" . | fromYaml -}}
{{- $granted := $rules.always -}}
{{- if $settings.networkPolicy.enabled -}}{{- $granted = concat $granted $rules.networkPolicies -}}{{- end -}}
{{- if $settings.createClaims -}}{{- $granted = concat $granted $rules.claims -}}{{- end -}}
{{- if $settings.kueue -}}{{- $granted = concat $granted $rules.kueue -}}{{- end -}}
{{- toYaml $granted -}}
{{- end }}

{{/* The port that the kubelet asks for health. */}}
{{- define "finetune.port" -}}
{{ .Values.settings.healthPort | default 8081 }}
{{- end }}

{{/* What tells this installation's metrics from another's: the labels that a ServiceMonitor gives them. */}}
{{- define "finetune.series" -}}
namespace={{ .Release.Namespace | quote }},job={{ printf "%s-metrics" (include "finetune.name" .) | quote }}
{{- end }}

{{/* Times of an election with which two could work at once; the schema cannot compare values. */}}
{{- define "finetune.election" -}}
{{- with .Values.leaderElection -}}
{{- if not (and (gt (float64 .leaseDurationSeconds) (float64 .renewDeadlineSeconds)) (gt (float64 .renewDeadlineSeconds) (float64 .retryPeriodSeconds))) -}}
{{- fail "leaderElection: leaseDurationSeconds must be above renewDeadlineSeconds, which must be above retryPeriodSeconds" -}}
{{- end -}}
{{- end -}}
{{- end }}
