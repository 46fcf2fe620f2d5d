{{/* The name of everything; Kubernetes' own names are made from it with suffixes, of which a CronJob's may have 52 characters in all. */}}
{{- define "actorgrid.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "actorgrid.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select: they are in fields that cannot be changed, so nothing that changes with a release may be among them. */}}
{{- define "actorgrid.selectorLabels" -}}
app.kubernetes.io/name: {{ include "actorgrid.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "actorgrid.labels" -}}
{{ include "actorgrid.selectorLabels" . }}
app.kubernetes.io/part-of: {{ include "actorgrid.name" .root }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/* Labels of a pod: without the chart's version, which is no reason to restart anything. */}}
{{- define "actorgrid.podLabels" -}}
{{ include "actorgrid.selectorLabels" . }}
app.kubernetes.io/part-of: {{ include "actorgrid.name" .root }}
{{- range $name, $value := .extra }}
{{- if hasPrefix "app.kubernetes.io/" $name }}
{{- fail (printf "podLabels: %s is the chart's own: pods are selected by it" $name) }}
{{- end }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "actorgrid.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- end -}}
{{- end -}}

{{- define "actorgrid.clusterId" -}}
{{- $name := printf "%s.%s" .Release.Namespace (include "actorgrid.fullname" .) -}}
{{- /* A certificate takes 64 characters. */ -}}
{{- .Values.clusterId | default (ternary $name (sha256sum $name | trunc 32) (le (len $name) 64)) -}}
{{- end -}}

{{- define "actorgrid.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "actorgrid.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Names outside the namespace: of the nodes' headless Service, of the head's pod, and of what clients are told. */}}
{{- define "actorgrid.nodesDomain" -}}
{{- printf "%s-nodes.%s.svc.%s" (include "actorgrid.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{- define "actorgrid.rayAddress" -}}
{{- $name := include "actorgrid.fullname" . -}}
{{- printf "%s-head-0.%s-head.%s.svc.%s:6379" $name $name .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{- define "actorgrid.clientAddress" -}}
{{- printf "%s.%s.svc.%s:%d" (include "actorgrid.fullname" .) .Release.Namespace .Values.clusterDomain (int .Values.nodes.port) -}}
{{- end -}}

{{/* How many of the first pods begin the grid. */}}
{{- define "actorgrid.nodesFirst" -}}
{{- min (int .Values.nodes.replicas) (int .Values.replicaSetSize) -}}
{{- end -}}

{{/* The pods that begin the grid, by names that are known before they are ready. */}}
{{- define "actorgrid.firstAddresses" -}}
{{- $root := . -}}
{{- $addresses := list -}}
{{- range $ordinal := until (int (include "actorgrid.nodesFirst" .)) -}}
{{- $pod := printf "%s-%d" (include "actorgrid.fullname" $root) $ordinal -}}
{{- $addresses = append $addresses (printf "%s.%s:%d" $pod (include "actorgrid.nodesDomain" $root) (int $root.Values.nodes.port)) -}}
{{- end -}}
{{- join "," $addresses -}}
{{- end -}}

{{/* The name of a Secret: `dict "root" . "name" "host"`. */}}
{{- define "actorgrid.secret" -}}
{{- index .root.Values.secrets .name | default (printf "%s-%s" (include "actorgrid.fullname" .root) .name) -}}
{{- end -}}

{{/* A number as people write it; Helm has large ones as 3.3554432e+07. */}}
{{- define "actorgrid.number" -}}
{{- if eq (float64 .) (floor .) -}}{{- int64 . -}}{{- else -}}{{- . -}}{{- end -}}
{{- end -}}

{{/* Files for /app: the application's, or an example where no module is named, since hosts without actors do not start. */}}
{{- define "actorgrid.appFiles" -}}
{{- if .Values.app.modules -}}
{{- toJson .Values.app.files -}}
{{- else -}}
{{- dict "hello.py" (.Files.Get "files/hello.py") | merge (deepCopy .Values.app.files) | toJson -}}
{{- end -}}
{{- end -}}

{{/* Settings of nodes that are no business of the number of pods; their checksum is in the pods, so that a change rolls them. */}}
{{- define "actorgrid.settings" -}}
ACTORGRID_CLUSTER_ID: {{ include "actorgrid.clusterId" . | quote }}
ACTORGRID_PARTITIONS: {{ .Values.partitions | int | quote }}
ACTORGRID_REPLICAS: {{ .Values.replicaSetSize | int | quote }}
ACTORGRID_APP: {{ join "," (default (list "hello") .Values.app.modules) | quote }}
ACTORGRID_APP_PATH: {{ .Values.app.path | quote }}
ACTORGRID_RAY_ADDRESS: {{ include "actorgrid.rayAddress" . | quote }}
ACTORGRID_HOSTS_PER_POD: {{ .Values.nodes.hostsPerPod | int | quote }}
ACTORGRID_STATEFULSET: {{ include "actorgrid.fullname" . | quote }}
ACTORGRID_SERVICE: {{ include "actorgrid.nodesDomain" . | quote }}
ACTORGRID_PORT: {{ .Values.nodes.port | int | quote }}
ACTORGRID_PROBE_PORT: {{ .Values.nodes.probes.port | int | quote }}
ACTORGRID_DATA: /data
ACTORGRID_GRACE_S: {{ .Values.nodes.terminationGracePeriodSeconds | int | quote }}
{{- range $name, $value := .Values.settings }}
ACTORGRID_{{ $name | upper }}: {{ include "actorgrid.number" $value | quote }}
{{- end }}
{{- end -}}

{{/* The pod and the container of the "restricted" pod security standard. */}}
{{- define "actorgrid.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurity.runAsUser | int64 }}
runAsGroup: {{ .Values.podSecurity.fsGroup | int64 }}
fsGroup: {{ .Values.podSecurity.fsGroup | int64 }}
# A volume of millions of files is not walked at every start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "actorgrid.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Who and where a pod is. */}}
{{- define "actorgrid.podEnv" -}}
- name: ACTORGRID_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: ACTORGRID_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: ACTORGRID_POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: ACTORGRID_KUBERNETES_NODE
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end -}}

{{- define "actorgrid.rayEnv" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN_PATH
  value: /credentials/ray/token
{{- end -}}

{{/* What a client of the chart's own, a Job or a test, shows: the operator's token. */}}
{{- define "actorgrid.operatorEnv" -}}
- name: ACTORGRID_CA
  value: /credentials/operator/ca.crt
- name: ACTORGRID_TOKEN_FILE
  value: /credentials/operator/token
{{- end -}}

{{/* A Secret as files that its pod's group may read, renewed in place: `dict "root" . "name" "host"`. */}}
{{- define "actorgrid.secretVolume" -}}
- name: {{ .name }}-credentials
  secret:
    secretName: {{ include "actorgrid.secret" . }}
    defaultMode: 0440
{{- end -}}

{{- define "actorgrid.secretMount" -}}
- name: {{ . }}-credentials
  mountPath: /credentials/{{ . }}
  readOnly: true
{{- end -}}

{{/* The object store of Ray lives in /dev/shm: `dict "what" "nodes.sharedMemory" "size" "256Mi"`. */}}
{{- define "actorgrid.sharedMemory" -}}
{{- $mib := trimSuffix "Mi" (trimSuffix "Gi" .size) | int -}}
{{- if hasSuffix "Gi" .size -}}{{- $mib = mul $mib 1024 -}}{{- end -}}
{{- if lt (int $mib) 128 -}}
{{- fail (printf "%s is %s: Ray's object store needs 128Mi at least" .what .size) -}}
{{- end -}}
{{- .size -}}
{{- end -}}

{{- define "actorgrid.tmpVolume" -}}
- name: tmp
  emptyDir:
    {{- if . }}
    sizeLimit: {{ . }}
    {{- else }} {}
    {{- end }}
{{- end -}}

{{/* What stands in every pod: `dict "root" . "pod" .Values.nodes`. */}}
{{- define "actorgrid.scheduling" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Every Secret that the chart makes, as a list in one line. */}}
{{- define "actorgrid.secretNames" -}}
{{- $names := list -}}
{{- range $what := list "ca" "host" "tokens" "caller" "observer" "operator" "ray" -}}
{{- $names = append $names (printf "%s-%s" (include "actorgrid.fullname" $) $what) -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* A pod of the chart's own Jobs, up to its containers: `dict "root" . "restart" "Never" "account" "" or a suffix`. */}}
{{- define "actorgrid.jobPod" -}}
restartPolicy: {{ .restart }}
{{- if .account }}
serviceAccountName: {{ printf "%s-%s" (include "actorgrid.fullname" .root) .account }}
automountServiceAccountToken: true
{{- else }}
automountServiceAccountToken: false
{{- end }}
enableServiceLinks: false
securityContext:
  {{- include "actorgrid.podSecurityContext" .root | nindent 2 }}
{{- with include "actorgrid.scheduling" (dict "root" .root "pod" .root.Values.jobs) | trim }}
{{ . }}
{{- end }}
{{- end -}}

{{/* The pod that makes or renews Secrets: `dict "root" . "account" "certs" "arguments" list`. */}}
{{- define "actorgrid.certificatesPod" -}}
{{- include "actorgrid.jobPod" (dict "root" .root "restart" "OnFailure" "account" .account) }}
containers:
  - name: certificates
    image: {{ include "actorgrid.image" .root }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: [actorgrid, certs, secrets]
    args:
      - --name={{ include "actorgrid.fullname" .root }}
      - --days={{ .root.Values.certificates.days }}
      {{- range concat (list
            (printf "*.%s" (include "actorgrid.nodesDomain" .root))
            (include "actorgrid.fullname" .root)
            (printf "%s.%s" (include "actorgrid.fullname" .root) .root.Release.Namespace)
            (printf "%s.%s.svc" (include "actorgrid.fullname" .root) .root.Release.Namespace)
            (printf "%s.%s.svc.%s" (include "actorgrid.fullname" .root) .root.Release.Namespace .root.Values.clusterDomain)
          ) .root.Values.certificates.addresses }}
      - {{ printf "--address=%s" . | quote }}
      {{- end }}
      {{- range $key, $value := include "actorgrid.podLabels" (dict "root" .root "component" "certificates" "extra" dict) | fromYaml }}
      - {{ printf "--label=%s=%s" $key $value | quote }}
      {{- end }}
      {{- range .arguments }}
      - {{ . }}
      {{- end }}
    securityContext:
      {{- include "actorgrid.containerSecurityContext" .root | nindent 6 }}
    env:
      - name: ACTORGRID_CLUSTER_ID
        value: {{ include "actorgrid.clusterId" .root | quote }}
      - name: ACTORGRID_NAMESPACE
        valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    resources:
      {{- toYaml .root.Values.jobs.resources | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
volumes:
  - name: tmp
    emptyDir: {}
{{- end -}}

{{/* A container that asks the grid as an operator: `dict "root" . "name" "init" "command" list "address" "..."`. */}}
{{- define "actorgrid.operatorContainer" -}}
- name: {{ .name }}
  image: {{ include "actorgrid.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: {{ toJson .command }}
  securityContext:
    {{- include "actorgrid.containerSecurityContext" .root | nindent 4 }}
  env:
    - name: ACTORGRID_ADDRESS
      value: {{ .address | quote }}
    {{- include "actorgrid.operatorEnv" .root | nindent 4 }}
  resources:
    {{- toYaml .root.Values.jobs.resources | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    {{- include "actorgrid.secretMount" "operator" | nindent 4 }}
{{- end -}}

{{- define "actorgrid.operatorVolumes" -}}
- name: tmp
  emptyDir: {}
{{ include "actorgrid.secretVolume" (dict "root" . "name" "operator") }}
{{- end -}}
