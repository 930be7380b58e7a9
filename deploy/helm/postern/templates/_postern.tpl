{{/*
Named templates for a chart of your own, which has this one as a dependency. Their scope is that of the dependency:

  initContainers:
    {{- include "postern.sidecar" .Subcharts.postern | nindent 8 }}
  volumes:
    {{- include "postern.volumes" .Subcharts.postern | nindent 8 }}
*/}}

{{/* Postern as an element of `initContainers` (native) or of `containers`. */}}
{{- define "postern.sidecar" -}}
- {{ include "postern.container" . | nindent 2 | trim }}
{{- if .Values.sidecar.native }}
  restartPolicy: Always
  startupProbe: {{- toYaml .Values.startupProbe | nindent 4 }}
{{- else }}
  lifecycle:
    postStart:
      exec: { command: [postern, wait, --admin-listen, "tcp://127.0.0.1:{{ int .Values.adminPort }}", --timeout, 60s] }
    {{- if gt (int .Values.sidecar.preStopSeconds) 0 }}
    preStop: {{- include "postern.pause" (dict "root" . "seconds" .Values.sidecar.preStopSeconds) | nindent 6 }}
    {{- end }}
{{- end }}
{{- end }}

{{/* What `volumes` of the pod must have for it. */}}
{{- define "postern.volumes" -}}
- name: postern-config
  configMap:
    name: {{ include "postern.configMapName" . }}
{{- with .Values.existingSecret }}
- name: postern-secrets
  secret:
    secretName: {{ . }}
{{- end }}
{{- if .Values.state.enabled }}
- name: postern-state
  emptyDir:
    sizeLimit: {{ .Values.state.sizeLimit }}
{{- end }}
{{- range .Values.tokens }}
- name: postern-token-{{ .name }}
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ .audience | quote }}
          expirationSeconds: {{ int64 (.expirationSeconds | default 600) }}
{{- end }}
{{- if or .Values.kubernetesSecrets.names .Values.configuration.resource }}
- name: postern-api-token
  projected:
    sources:
      - serviceAccountToken: { path: token, expirationSeconds: 3600 }
      - configMap:
          name: kube-root-ca.crt
          items: [{ key: ca.crt, path: ca.crt }]
      - downwardAPI:
          items:
            - path: namespace
              fieldRef: { fieldPath: metadata.namespace }
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* An annotation for the pod template: a changed configuration rolls the workload out. */}}
{{- define "postern.checksum" -}}
postern.dev/config-checksum: {{ printf "%s\n%s" .Values.config (toYaml .Values.files) | sha256sum }}
{{- end }}

{{/* Labels for pods that are to reach a gateway with the default NetworkPolicy. */}}
{{- define "postern.clientLabels" -}}
postern.dev/client: "true"
{{- end }}

{{/* The container without what makes it a sidecar. */}}
{{- define "postern.container" -}}
name: postern
image: {{ include "postern.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - run
  {{- if or .Values.config .Values.existingConfigMap (not .Values.configuration.resource) }}
  - --config
  - /etc/postern/postern.yaml
  {{- end }}
  {{- with .Values.configuration.resource }}
  - --config
  - k8s:///{{ . }}
  {{- end }}
  - --admin-listen
  - {{ printf "tcp://0.0.0.0:%d" (int .Values.adminPort) }}
  {{- with .Values.args }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.env }}
env: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.envFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: postern-admin
    containerPort: {{ int .Values.adminPort }}
readinessProbe: {{- toYaml .Values.readinessProbe | nindent 2 }}
livenessProbe: {{- toYaml .Values.livenessProbe | nindent 2 }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
resources: {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - { name: postern-config, mountPath: /etc/postern, readOnly: true }
  {{- if .Values.existingSecret }}
  - { name: postern-secrets, mountPath: /etc/postern-secrets, readOnly: true }
  {{- end }}
  {{- if .Values.state.enabled }}
  - { name: postern-state, mountPath: /var/lib/postern }
  {{- end }}
  {{- range .Values.tokens }}
  - { name: postern-token-{{ .name }}, mountPath: /var/run/secrets/{{ .name }}, readOnly: true }
  {{- end }}
  {{- if or .Values.kubernetesSecrets.names .Values.configuration.resource }}
  - { name: postern-api-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true }
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* A hook that takes its time: the image has no shell and no sleep, the action exists since Kubernetes 1.30. */}}
{{- define "postern.pause" -}}
{{- if semverCompare ">=1.30.0-0" .root.Capabilities.KubeVersion.Version -}}
sleep: { seconds: {{ int .seconds }} }
{{- else -}}
exec: { command: [node, -e, "setTimeout(() => {}, {{ mul (int .seconds) 1000 }})"] }
{{- end -}}
{{- end }}

{{- define "postern.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "postern.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "postern.configMapName" -}}
{{ .Values.existingConfigMap | default (printf "%s-config" (include "postern.fullname" .)) }}
{{- end }}

{{- define "postern.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "postern.labels" -}}
{{ include "postern.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* "yes" where the gateway is to be made. */}}
{{- define "postern.hasGateway" -}}
{{- if kindIs "invalid" .Values.gateway.enabled -}}
{{- if .Chart.IsRoot }}yes{{ end -}}
{{- else if .Values.gateway.enabled }}yes{{ end -}}
{{- end }}

{{- define "postern.serviceAccountName" -}}
{{- if eq (include "postern.hasGateway" .) "yes" -}}
{{- if .Values.gateway.serviceAccount.create -}}
{{ .Values.gateway.serviceAccount.name | default (include "postern.fullname" .) }}
{{- else -}}
{{ .Values.gateway.serviceAccount.name | default "default" }}
{{- end -}}
{{- else -}}
{{ .Values.kubernetesSecrets.serviceAccountName | required "postern: kubernetesSecrets.serviceAccountName must be the service account of your pod" }}
{{- end -}}
{{- end }}

{{/* The ports of the gateway as JSON, {"ports": [{name, port}]}: those given, else those that the configuration listens on. */}}
{{- define "postern.ports" -}}
{{- $ports := list -}}
{{- if .Values.gateway.ports -}}
{{- $ports = .Values.gateway.ports -}}
{{- else -}}
{{- $config := fromYaml .Values.config -}}
{{- if hasKey $config "Error" }}{{ fail (printf "postern: config is no YAML: %s" (get $config "Error")) }}{{ end -}}
{{- $seen := dict -}}
{{- range $name, $service := $config.services | default dict -}}
{{- $listen := $service.listenOn | default "" -}}
{{- if not (hasPrefix "tcp" $listen) }}{{ fail (printf "postern: service %s listens on %q, which no other pod can reach: tcp://0.0.0.0:PORT" $name $listen) }}{{ end -}}
{{- if regexMatch "//(localhost|127\\.[0-9.]+|\\[::1\\]):" $listen }}{{ fail (printf "postern: service %s listens on %s, which no other pod can reach. A gateway needs tcp://0.0.0.0:PORT and exposed: true; better still, make Postern a sidecar" $name $listen) }}{{ end -}}
{{- if not $service.exposed }}{{ fail (printf "postern: service %s needs exposed: true, which says that whoever reaches it is logged in" $name) }}{{ end -}}
{{- $port := regexFind "[0-9]+$" $listen -}}
{{- if not (hasKey $seen $port) -}}
{{- $_ := set $seen $port true -}}
{{- $ports = append $ports (dict "name" (printf "tcp-%s" $port) "port" (int $port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $ports }}{{ fail "postern: a gateway needs services in `config`, or `gateway.ports` beside `existingConfigMap`" }}{{ end -}}
{{ dict "ports" $ports | toJson }}
{{- end }}
