{{- define "tiergate.labels" -}}
app.kubernetes.io/name: tiergate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "tiergate.selector" -}}
app.kubernetes.io/name: tiergate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tiergate.policySecret" -}}
{{ .Values.existingPolicySecret | default (printf "%s-policy" .Release.Name) }}
{{- end }}

{{- define "tiergate.config" -}}
{{- $fixed := dict "listen" "[::]:8080" "admin" "[::]:9464" "policy" "/etc/tiergate/policy/policy.yaml" "access_log" (dict "path" "-") "health_path" "/healthz" -}}
{{ toYaml (merge $fixed .Values.config) }}
{{- end }}
