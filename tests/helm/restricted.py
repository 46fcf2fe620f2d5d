"""The pod security standard "restricted" of Kubernetes 1.34, baseline's rules among them, written out.

Source: "Pod Security Standards" of Kubernetes' documentation. Pods of this chart run on Linux alone, so Windows is left out.
"""

from __future__ import annotations

from typing import Any

VOLUMES = frozenset({"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"})
SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
SELINUX_TYPES = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
PROFILES = frozenset({"RuntimeDefault", "Localhost"})


def violations(pod: dict[str, Any]) -> list[str]:
    """What a pod (or a template of one) breaks; empty if it may run."""
    spec = pod["spec"]
    context = spec.get("securityContext", {})
    problems = [f"pod: {name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    for volume in spec.get("volumes", []):
        problems += [f"volume {volume['name']}: {kind}" for kind in volume if kind != "name" and kind not in VOLUMES]
    problems += [f"pod: sysctl {each['name']}" for each in context.get("sysctls", []) if each["name"] not in SYSCTLS]
    problems += _of_context("pod", context)
    for annotation, value in pod["metadata"].get("annotations", {}).items():
        if (
            annotation.startswith("container.apparmor.security.beta.kubernetes.io/")
            and value != "runtime/default"
            and value[:10] != "localhost/"
        ):
            problems.append(f"pod: {annotation} is {value}")
    for container in (*spec.get("initContainers", []), *spec["containers"], *spec.get("ephemeralContainers", [])):
        problems += _of_container(container, context)
    return problems


def _of_context(where: str, context: dict[str, Any]) -> list[str]:
    problems = []
    if context.get("runAsUser") == 0:
        problems.append(f"{where}: runs as root")
    options = context.get("seLinuxOptions", {})
    if options.get("type", "") not in SELINUX_TYPES or options.get("user") or options.get("role"):
        problems.append(f"{where}: SELinux options {options}")
    if context.get("seccompProfile", {}).get("type", "RuntimeDefault") not in PROFILES:
        problems.append(f"{where}: seccomp profile {context['seccompProfile']}")
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in PROFILES:
        problems.append(f"{where}: AppArmor profile {context['appArmorProfile']}")
    if context.get("windowsOptions", {}).get("hostProcess"):
        problems.append(f"{where}: a process of the host")
    return problems


def _of_container(container: dict[str, Any], of_pod: dict[str, Any]) -> list[str]:
    where, own = f"container {container['name']}", container.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    problems = _of_context(where, own)
    problems += [f"{where}: port of the machine {port['hostPort']}" for port in container.get("ports", []) if port.get("hostPort")]
    if own.get("privileged"):
        problems.append(f"{where}: is privileged")
    if own.get("procMount", "Default") != "Default":
        problems.append(f"{where}: /proc is unmasked")
    if own.get("allowPrivilegeEscalation") is not False:
        problems.append(f"{where}: may get more privileges")
    if "ALL" not in capabilities.get("drop", []):
        problems.append(f"{where}: keeps capabilities")
    problems += [f"{where}: gets {each}" for each in capabilities.get("add", []) if each != "NET_BIND_SERVICE"]
    if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        problems.append(f"{where}: may run as root")
    if own.get("seccompProfile", of_pod.get("seccompProfile", {})).get("type") not in PROFILES:
        problems.append(f"{where}: no seccomp profile")
    for hook in container.get("lifecycle", {}).values():
        for handler in ("httpGet", "tcpSocket"):
            if hook.get(handler, {}).get("host"):
                problems.append(f"{where}: a hook asks another machine")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        for handler in ("httpGet", "tcpSocket"):
            if container.get(probe, {}).get(handler, {}).get("host"):
                problems.append(f"{where}: {probe} asks another machine")
    return problems
