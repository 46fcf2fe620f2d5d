"""The chart, rendered for several values: what the API server takes, what pods may do, and what each of them is told."""

from __future__ import annotations

import copy
import re
from typing import Any

import helm_python
import kubernetes_validate
import pytest

from tests.helm import rendering
from tests.helm.rendering import CASES, CHART, OTHER_WAY, Object, environment_of, find, of_kind, pods, render
from tests.helm.restricted import violations

VERSION = "1.34"
NAME = "shop-actorgrid"
SECRETS = [f"{NAME}-{what}" for what in ("ca", "host", "tokens", "caller", "observer", "operator", "ray")]

cases = pytest.mark.parametrize("values", CASES.values(), ids=CASES)
upgrades = pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])


def node_pod(objects: list[Object], name: str = NAME) -> Object:
    return find(objects, "StatefulSet", name)["spec"]["template"]


def node(objects: list[Object], name: str = NAME) -> Object:
    (container,) = node_pod(objects, name)["spec"]["containers"]
    return container


# -- what Helm and the API server say


@cases
def test_lint_has_nothing_to_say(values: Object) -> None:
    report = helm_python.lint(CHART, values, strict=True, namespace="prod", kube_version=f"v{VERSION}.0")
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@upgrades
@cases
def test_every_object_is_what_the_api_takes(values: Object, upgrade: bool) -> None:
    objects = render(values, upgrade=upgrade)
    for each in objects:
        assert kubernetes_validate.validate(each, VERSION, strict=True) == VERSION
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)


def test_the_schemas_of_the_api_are_really_asked() -> None:
    broken = copy.deepcopy(find(render(), "StatefulSet", NAME))
    broken["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


@cases
def test_every_object_has_its_labels_and_its_namespace(values: Object) -> None:
    for each in render(values):
        labels = each["metadata"]["labels"]
        for name in ("name", "instance", "component", "part-of", "version", "managed-by"):
            assert labels[f"app.kubernetes.io/{name}"], each["metadata"]["name"]
        assert all(len(value) <= 63 for value in labels.values())
        if not each["kind"].startswith("ClusterRole"):
            assert each["metadata"]["namespace"] == "prod"


def test_names_fit_however_long_the_release_is_called() -> None:
    objects = render({"nameOverride": "n" * 40}, name="r" * 53, namespace="s" * 63)
    for each in objects:
        limit = 52 if each["kind"] in ("StatefulSet", "CronJob") else 63
        if not each["kind"].startswith("ClusterRole"):
            assert len(each["metadata"]["name"]) <= limit
    assert len(find(objects, "ConfigMap", "r" * 40 + "-settings")["data"]["ACTORGRID_CLUSTER_ID"]) <= 64


def test_a_release_that_is_called_as_the_chart_says_so_once() -> None:
    assert "actorgrid" in of_kind(render(name="actorgrid"), "StatefulSet")
    assert "bank" in of_kind(render({"fullnameOverride": "bank"}), "StatefulSet")


# -- what pods may do


@cases
def test_every_pod_passes_the_restricted_standard(values: Object) -> None:
    seen = dict(pods(render(values)))
    assert len(seen) >= 3
    for name, pod in seen.items():
        assert violations(pod) == [], name


def break_pod(where: str, value: Any) -> Object:
    pod = copy.deepcopy(node_pod(render()))
    target = pod["spec"]
    *path, last = where.split("/")
    for step in path:
        target = target[int(step)] if step.isdecimal() else target[step]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return pod


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("hostNetwork", True),
        ("volumes/0/hostPath", {"path": "/"}),
        ("securityContext/runAsUser", 0),
        ("securityContext/sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        ("containers/0/securityContext/runAsNonRoot", False),
        ("containers/0/securityContext/allowPrivilegeEscalation", None),
        ("containers/0/securityContext/capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}),
        ("containers/0/securityContext/capabilities/drop", ["KILL"]),
        ("containers/0/securityContext/seccompProfile", {"type": "Unconfined"}),
        ("containers/0/securityContext/seLinuxOptions", {"user": "system_u"}),
        ("containers/0/securityContext/privileged", True),
        ("containers/0/securityContext/procMount", "Unmasked"),
        ("containers/0/ports/0/hostPort", 7400),
        ("containers/0/livenessProbe/httpGet/host", "example.com"),
    ],
)
def test_the_restricted_standard_is_really_checked(where: str, value: Any) -> None:
    assert violations(break_pod(where, value)) != []


@cases
def test_every_container_writes_only_where_it_is_told(values: Object) -> None:
    for name, pod in pods(render(values)):
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], name
            assert container["resources"]["requests"]["memory"], name
            assert container["resources"]["limits"]["memory"], name
        assert pod["spec"]["enableServiceLinks"] is False, name  # a Service `actorgrid` would set ACTORGRID_PORT


@cases
def test_secrets_are_files_for_the_pods_group_alone(values: Object) -> None:
    for name, pod in pods(render(values)):
        assert pod["spec"]["securityContext"]["fsGroup"] > 0
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440, name
        for container in pod["spec"]["containers"]:
            for mount in container["volumeMounts"]:
                if mount["mountPath"].startswith("/credentials/"):
                    assert mount["readOnly"] is True
                    assert "subPath" not in mount  # such a file is never renewed
            assert [each for each in container.get("env", []) if "secretKeyRef" in each.get("valueFrom", {})] == []


@cases
def test_the_authoritys_key_is_in_no_pod(values: Object) -> None:
    for name, pod in pods(render(values)):
        assert [each for each in pod["spec"]["volumes"] if each.get("secret", {}).get("secretName", "").endswith("-ca")] == [], name


def test_user_and_group_are_those_of_the_values() -> None:
    for _, pod in pods(render(OTHER_WAY)):
        assert pod["spec"]["securityContext"]["runAsUser"] == 2000
        assert pod["spec"]["securityContext"]["fsGroup"] == 3000


# -- rights


def rules(objects: list[Object]) -> dict[str, list[Object]]:
    return {f"{each['kind']} {each['metadata']['name']}": each["rules"] for each in objects if each["kind"] in ("Role", "ClusterRole")}


def granted(role: list[Object]) -> set[tuple[str, str, tuple[str, ...], str]]:
    """A rule as (group, resource, names, verb), one for each verb."""
    return {
        (group, resource, tuple(rule.get("resourceNames", ())), verb)
        for rule in role
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@cases
def test_no_right_has_a_wildcard(values: Object) -> None:
    for name, role in rules(render(values)).items():
        for right in granted(role):
            assert "*" not in repr(right), name


def test_rights_are_these_and_no_others() -> None:
    found = rules(render())
    assert granted(found.pop(f"Role {NAME}")) == {
        ("", "pods", (), "list"),
        ("", "pods", (), "watch"),
        ("apps", "statefulsets", (NAME,), "get"),
        ("apps", "statefulsets", (NAME,), "list"),
        ("apps", "statefulsets", (NAME,), "watch"),
        ("", "persistentvolumeclaims", (), "list"),
        ("", "persistentvolumeclaims", (), "watch"),
        ("", "events", (), "create"),
    }
    assert granted(found.pop(f"ClusterRole prod-{NAME}")) == {("", "nodes", (), verb) for verb in ("get", "list", "watch")}
    by_name = {("", "secrets", tuple(SECRETS), verb) for verb in ("get", "update")}
    assert granted(found.pop(f"Role {NAME}-certs")) == by_name | {("", "secrets", (), "create")}
    assert granted(found.pop(f"Role {NAME}-renewal")) == by_name
    assert found == {}


@cases
def test_a_role_is_bound_to_an_account_that_a_pod_uses(values: Object) -> None:
    objects = render(values)
    used = {pod["spec"].get("serviceAccountName") for _, pod in pods(objects)}
    for each in objects:
        if each["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            find(objects, each["roleRef"]["kind"], each["roleRef"]["name"])
            assert {subject["name"] for subject in each["subjects"]} <= used
            assert {subject["namespace"] for subject in each["subjects"]} == {"prod"}


def test_only_who_asks_the_api_server_gets_a_token_for_it() -> None:
    objects = render()
    asking = {name for name, pod in pods(objects) if pod["spec"]["automountServiceAccountToken"]}
    assert asking == {f"StatefulSet {NAME}", f"Job {NAME}-certs", f"CronJob {NAME}-renewal"}
    for account in of_kind(objects, "ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False


def test_rights_on_machines_can_be_left_out() -> None:
    kinds = {each["kind"] for each in render({"nodes": {"watchKubernetesNodes": False}})}
    assert kinds & {"ClusterRole", "ClusterRoleBinding"} == set()


def test_an_account_that_exists_is_used() -> None:
    objects = render(OTHER_WAY)
    assert node_pod(objects, "shop-grid")["spec"]["serviceAccountName"] == "given"
    assert set(of_kind(objects, "ServiceAccount")) == {"shop-grid-certs"}


# -- nodes


def test_the_default_is_three_nodes_and_three_replicas_with_credentials() -> None:
    objects = render()
    assert find(objects, "StatefulSet", NAME)["spec"]["replicas"] == 3
    told = environment_of(node(objects), objects)
    assert told["ACTORGRID_REPLICAS"] == "3"
    assert told["ACTORGRID_KEY"] == "/credentials/host/tls.key"
    assert told["RAY_AUTH_MODE"] == "token"


def test_a_node_is_told_all_it_has_to_know() -> None:
    objects = render()
    assert environment_of(node(objects), objects) == {
        "ACTORGRID_CLUSTER_ID": f"prod.{NAME}",
        "ACTORGRID_PARTITIONS": "64",
        "ACTORGRID_REPLICAS": "3",
        "ACTORGRID_APP": "hello",
        "ACTORGRID_APP_PATH": "/app",
        "ACTORGRID_RAY_ADDRESS": f"{NAME}-head-0.{NAME}-head.prod.svc.cluster.local:6379",
        "ACTORGRID_HOSTS_PER_POD": "1",
        "ACTORGRID_STATEFULSET": NAME,
        "ACTORGRID_SERVICE": f"{NAME}-nodes.prod.svc.cluster.local",
        "ACTORGRID_NODES_FIRST": "3",
        "ACTORGRID_PORT": "7400",
        "ACTORGRID_PROBE_PORT": "7480",
        "ACTORGRID_DATA": "/data",
        "ACTORGRID_GRACE_S": "120",
        "ACTORGRID_POD_NAME": "$metadata.name",
        "ACTORGRID_NAMESPACE": "$metadata.namespace",
        "ACTORGRID_POD_IP": "$status.podIP",
        "ACTORGRID_KUBERNETES_NODE": "$spec.nodeName",
        "ACTORGRID_CA": "/credentials/host/ca.crt",
        "ACTORGRID_CERTIFICATE": "/credentials/host/tls.crt",
        "ACTORGRID_KEY": "/credentials/host/tls.key",
        "ACTORGRID_TOKENS": "/credentials/tokens/tokens.json",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/credentials/ray/token",
    }


def test_values_reach_the_node() -> None:
    objects = render(OTHER_WAY)
    told = environment_of(node(objects, "shop-grid"), objects)
    assert told["ACTORGRID_COPY_BYTES_PER_S"] == "134217728"  # not 1.34217728e+08
    assert told["ACTORGRID_REPLICA_RESTART_WAIT_S"] == "0.5"
    assert told["ACTORGRID_APP"] == "a.b,c"
    assert told["ACTORGRID_APP_PATH"] == "/x:/y"
    assert told["ACTORGRID_SERVICE"] == "shop-grid-nodes.prod.svc.corp.example"
    assert told["ACTORGRID_CLUSTER_ID"] == "other"
    assert told["ACTORGRID_NODES_FIRST"] == "3"  # five nodes, of which three begin the grid
    assert told["EXTRA"] == "1"
    ports = {port["name"]: port["containerPort"] for port in node(objects, "shop-grid")["ports"]}
    assert ports == {"grid": 9000, "grid-1": 9001, "grid-2": 9002, "probe": 7480}


def test_files_of_the_application_arrive_as_they_are() -> None:
    text = OTHER_WAY["app"]["files"]["c.py"]
    assert find(render(OTHER_WAY), "ConfigMap", "shop-grid-app")["data"] == {"c.py": text}
    bank = rendering.example("small")
    assert find(render(bank), "ConfigMap", f"{NAME}-app")["data"] == bank["app"]["files"]


def test_a_grid_without_an_application_has_an_example() -> None:
    objects = render()
    code = find(objects, "ConfigMap", f"{NAME}-app")["data"]["hello.py"]
    compile(code, "hello.py", "exec")
    assert "class Counter" in code
    baked = render({"app": {"modules": ["shop.orders"], "path": "/srv"}})
    assert f"{NAME}-app" not in of_kind(baked, "ConfigMap")
    assert "/app" not in [mount["mountPath"] for mount in node(baked)["volumeMounts"]]


def test_nodes_are_a_stateful_set_that_keeps_its_volumes() -> None:
    spec = find(render(), "StatefulSet", NAME)["spec"]
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["serviceName"] == f"{NAME}-nodes"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert spec["updateStrategy"] == {"type": "RollingUpdate"}
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["metadata"]["labels"] == spec["selector"]["matchLabels"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert "storageClassName" not in claim["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def test_what_cannot_be_changed_is_the_same_for_every_version() -> None:
    for name in (NAME, f"{NAME}-head"):
        fixed = []
        for values in ({}, {"image": {"tag": "9"}, "replicaSetSize": 5, "settings": {"stop_grace_s": 3}, "nodes": {"replicas": 7}}):
            spec = find(render(values), "StatefulSet", name)["spec"]
            fixed.append(
                (spec["selector"], spec["volumeClaimTemplates"], spec["serviceName"], spec["podManagementPolicy"] if name == NAME else "")
            )
        assert fixed[0] == fixed[1]
        assert set(fixed[0][0]["matchLabels"]) == {f"app.kubernetes.io/{label}" for label in ("name", "instance", "component")}


def test_probes_are_those_of_the_agent() -> None:
    container = node(render())
    probes = {which: container[f"{which}Probe"]["httpGet"] for which in ("startup", "readiness", "liveness")}
    assert probes == {
        which: {"path": path, "port": "probe", "scheme": "HTTPS"}
        for which, path in (("startup", "/startupz"), ("readiness", "/readyz"), ("liveness", "/livez"))
    }
    assert container["lifecycle"] == {"preStop": {"exec": {"command": ["actorgrid", "pod", "leave"]}}}
    assert container["command"] == ["actorgrid", "pod", "run"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600  # a large store takes its time to open
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60  # a node that is merely slow is not killed


def test_the_grace_period_is_the_pods_and_told_to_the_node() -> None:
    objects = render({"nodes": {"terminationGracePeriodSeconds": 777}})
    assert node_pod(objects)["spec"]["terminationGracePeriodSeconds"] == 777
    assert environment_of(node(objects), objects)["ACTORGRID_GRACE_S"] == "777"


def test_nodes_are_spread_over_machines_and_zones() -> None:
    objects = render()
    found = {each["topologyKey"]: each for each in node_pod(objects)["spec"]["topologySpreadConstraints"]}
    assert {key: each["whenUnsatisfiable"] for key, each in found.items()} == {
        "kubernetes.io/hostname": "DoNotSchedule",
        "topology.kubernetes.io/zone": "ScheduleAnyway",
    }
    for each in found.values():
        assert each["maxSkew"] == 1
        assert each["nodeTaintsPolicy"] == "Honor"
        assert each["labelSelector"]["matchLabels"] == find(objects, "StatefulSet", NAME)["spec"]["selector"]["matchLabels"]
    assert "topologySpreadConstraints" not in node_pod(render(OTHER_WAY), "shop-grid")["spec"]


def test_one_node_at_a_time_is_evicted() -> None:
    objects = render()
    budget = find(objects, "PodDisruptionBudget", NAME)["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"] == find(objects, "StatefulSet", NAME)["spec"]["selector"]["matchLabels"]
    assert of_kind(render(OTHER_WAY), "PodDisruptionBudget") == {}


def test_shared_memory_is_memory_and_enough_for_ray() -> None:
    for name, size in ((NAME, "256Mi"), (f"{NAME}-head", "128Mi")):
        spec = find(render(), "StatefulSet", name)["spec"]["template"]["spec"]
        (volume,) = [each["emptyDir"] for each in spec["volumes"] if each["name"] == "shm"]
        assert volume == {"medium": "Memory", "sizeLimit": size}
    with pytest.raises(helm_python.HelmError, match=r"nodes\.sharedMemory is 64Mi"):
        render({"nodes": {"sharedMemory": "64Mi"}})
    render({"nodes": {"sharedMemory": "1Gi"}})


def test_a_probe_port_that_a_host_has_is_refused() -> None:
    with pytest.raises(helm_python.HelmError, match=r"nodes\.probes\.port is 7402: hosts listen on 7400 to 7403"):
        render({"nodes": {"hostsPerPod": 4, "probes": {"port": 7402}}})


def checksums(values: Object) -> tuple[str, str]:
    annotations = node_pod(render(values))["metadata"]["annotations"]
    return annotations["actorgrid.io/settings-checksum"], annotations["actorgrid.io/app-checksum"]


def test_a_changed_setting_rolls_the_pods_and_a_changed_size_does_not() -> None:
    before = checksums({})
    assert checksums({"settings": {"stop_grace_s": 3}})[0] != before[0]
    assert checksums({"replicaSetSize": 5})[0] != before[0]
    assert checksums({"app": {"files": {"more.py": ""}}})[1] != before[1]
    for replicas in (1, 2, 5):
        assert checksums({"nodes": {"replicas": replicas}}) == before
    assert node_pod(render({"nodes": {"replicas": 2}})) == node_pod(render())


def test_labels_of_the_chart_cannot_be_taken() -> None:
    with pytest.raises(helm_python.HelmError, match=r"app\.kubernetes\.io/name is the chart's own"):
        render({"nodes": {"podLabels": {"app.kubernetes.io/name": "mine"}}})


# -- Ray's head, Services, policies


def test_the_head_is_one_pod_with_a_volume() -> None:
    objects = render()
    spec = find(objects, "StatefulSet", f"{NAME}-head")["spec"]
    assert spec["replicas"] == 1
    assert [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]] == ["data"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["actorgrid", "pod", "head"]
    assert container["readinessProbe"]["tcpSocket"] == {"port": "ray"}
    told = environment_of(container, objects)
    assert told["ACTORGRID_DATA"] == "/data"
    assert told["RAY_AUTH_TOKEN_PATH"] == "/credentials/ray/token"
    assert told["ACTORGRID_POD_IP"] == "$status.podIP"


def test_settings_of_nodes_do_not_restart_the_head() -> None:
    template = find(render(), "StatefulSet", f"{NAME}-head")["spec"]["template"]
    changed = render({"settings": {"stop_grace_s": 3}, "replicaSetSize": 5, "nodes": {"replicas": 5}})
    assert find(changed, "StatefulSet", f"{NAME}-head")["spec"]["template"] == template


def test_services_are_one_for_clients_and_one_for_names() -> None:
    objects = render()
    services = {name: each["spec"] for name, each in of_kind(objects, "Service").items()}
    assert set(services) == {NAME, f"{NAME}-nodes", f"{NAME}-head"}
    for name in (f"{NAME}-nodes", f"{NAME}-head"):
        assert services[name]["clusterIP"] == "None"
        assert services[name]["publishNotReadyAddresses"] is True
    assert services[NAME]["type"] == "ClusterIP"
    assert "publishNotReadyAddresses" not in services[NAME]  # clients get pods that are ready
    assert services[NAME]["ports"] == [{"name": "grid", "port": 7400, "targetPort": "grid", "protocol": "TCP"}]
    for name, spec in services.items():
        labels = find(objects, "StatefulSet", f"{NAME}-head" if name.endswith("-head") else NAME)["spec"]["template"]["metadata"]["labels"]
        assert spec["selector"].items() <= labels.items()
        others = find(objects, "StatefulSet", NAME if name.endswith("-head") else f"{NAME}-head")["spec"]["template"]["metadata"]["labels"]
        assert not spec["selector"].items() <= others.items()


def test_only_the_grids_pods_reach_ray() -> None:
    policies = {name: each["spec"] for name, each in of_kind(render(), "NetworkPolicy").items()}
    open_to_all, own = policies[NAME]["ingress"]
    assert [port["port"] for port in open_to_all["ports"]] == [7400, 7480]
    assert "ports" not in own
    components = [each["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for each in own["from"]]
    assert components == ["node", "head"]
    (of_head,) = policies[f"{NAME}-head"]["ingress"]
    assert [each["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for each in of_head["from"]] == ["node"]
    assert of_kind(render(OTHER_WAY), "NetworkPolicy") == {}


# -- Jobs


def test_the_grid_is_begun_by_the_first_install_alone() -> None:
    job = find(render(), "Job", f"{NAME}-init")
    assert "annotations" not in job["metadata"]  # no hook: `helm install --wait` would wait for what it begins
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "actorgrid init" in container["command"][-1]
    told = environment_of(container, [])
    assert told["ACTORGRID_ADDRESS"].split(",") == [f"{NAME}-{number}.{NAME}-nodes.prod.svc.cluster.local:7400" for number in range(3)]
    assert told["ACTORGRID_TOKEN_FILE"] == "/credentials/operator/token"
    assert f"{NAME}-init" not in of_kind(render(upgrade=True), "Job")
    assert f"{NAME}-init" not in of_kind(render({"init": {"enabled": False}}), "Job")


def test_the_grid_can_be_begun_by_a_hook() -> None:
    job = find(render({"init": {"hook": True}}), "Job", f"{NAME}-init")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install"


def test_certificates_are_there_before_what_needs_them() -> None:
    objects = render()
    hooks = {
        (each["kind"], each["metadata"]["name"]): each["metadata"]["annotations"]
        for each in objects
        if "pre-install" in each["metadata"].get("annotations", {}).get("helm.sh/hook", "")
    }
    assert set(hooks) == {(kind, f"{NAME}-certs") for kind in ("ServiceAccount", "Role", "RoleBinding", "Job")}
    for (kind, _), hook in hooks.items():
        assert hook["helm.sh/hook"] == "pre-install,pre-upgrade"
        # A Job that failed stays for its log, the rights go.
        policy = "before-hook-creation,hook-succeeded"
        assert hook["helm.sh/hook-delete-policy"] == (policy if kind == "Job" else f"{policy},hook-failed")
    weights = {kind: int(hook["helm.sh/hook-weight"]) for (kind, _), hook in hooks.items()}
    assert max(weights["ServiceAccount"], weights["Role"]) < weights["RoleBinding"] < weights["Job"]
    pod = find(objects, "Job", f"{NAME}-certs")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == f"{NAME}-certs"
    assert all("envFrom" not in container for container in pod["containers"])  # before the first install there is no ConfigMap


def certificate_arguments(objects: list[Object], kind: str, name: str) -> list[str]:
    (pod,) = [pod for who, pod in pods(objects) if who == f"{kind} {name}"]
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["actorgrid", "certs", "secrets"]
    assert environment_of(container, objects) == {"ACTORGRID_CLUSTER_ID": f"prod.{NAME}", "ACTORGRID_NAMESPACE": "$metadata.namespace"}
    return container["args"]


def test_certificates_are_made_and_renewed_alike() -> None:
    objects = render({"certificates": {"days": 30, "addresses": ["grid.example.com"]}})
    made = certificate_arguments(objects, "Job", f"{NAME}-certs")
    assert certificate_arguments(objects, "CronJob", f"{NAME}-renewal") == [*made, "--only-renew"]
    assert f"--name={NAME}" in made
    assert "--days=30" in made
    assert f"--address=*.{NAME}-nodes.prod.svc.cluster.local" in made
    assert "--address=grid.example.com" in made


def test_the_command_line_has_what_the_chart_calls() -> None:
    """Every option that Jobs give is one that `actorgrid` has."""
    typer_main = pytest.importorskip("typer.main")
    from actorgrid.cli import commands

    root = typer_main.get_command(commands.app)
    called = set()
    for name, pod in pods(render()):
        for container in pod["spec"]["containers"]:
            words = container["command"] + container.get("args", [])
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            scripts = [text.split() for text in re.findall(r"actorgrid [a-z]+(?: --[a-z]+)?", words[2])] if words[0] == "sh" else [words]
            for arguments in (line[1:] for line in (*scripts, hook) if line):
                command: Any = root
                while arguments and hasattr(command, "commands"):
                    assert arguments[0] in command.commands, f"{name}: actorgrid {' '.join(arguments)}"
                    command = command.commands[arguments.pop(0)]
                options = {option for parameter in command.params for option in parameter.opts}
                assert {each.split("=")[0] for each in arguments if each.startswith("--")} <= options, name
                called.add(command.name)
    assert called == {"run", "leave", "head", "init", "secrets", "status", "nodes", "call"}


def test_credentials_can_come_from_elsewhere() -> None:
    objects = render(rendering.example("own-certificates"))
    assert not [each for each in objects if "secrets" in repr(each.get("rules"))]
    assert of_kind(objects, "CronJob") == {}
    mounted = {volume["secret"]["secretName"] for _, pod in pods(objects) for volume in pod["spec"]["volumes"] if "secret" in volume}
    assert mounted == {"bank-grid-tls", "bank-grid-tokens", "bank-grid-operator", "bank-grid-ray"}


def test_renewal_can_be_left_to_upgrades() -> None:
    objects = render({"certificates": {"renewal": {"enabled": False}}})
    assert of_kind(objects, "CronJob") == {}
    assert set(of_kind(objects, "ServiceAccount")) == {NAME, f"{NAME}-certs"}


def test_helm_test_asks_as_an_operator_and_makes_a_call() -> None:
    pod = find(render(), "Pod", f"{NAME}-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"
    (container,) = pod["spec"]["containers"]  # `helm test --logs` takes no more
    assert container["command"][:2] == ["sh", "-ec"]
    assert re.findall(r"actorgrid [a-z]+", container["command"][2]) == ["actorgrid status", "actorgrid nodes", "actorgrid call"]
    assert container["command"][4:] == ["Counter", "helm-test", "increment"]
    told = environment_of(container, [])
    assert told["ACTORGRID_ADDRESS"] == f"{NAME}.prod.svc.cluster.local:7400"
    assert told["ACTORGRID_CA"] == "/credentials/operator/ca.crt"
    for values, name, call in (
        (OTHER_WAY, "shop-grid-test", ["Account", "alice", "deposit", "1"]),
        ({"app": {"modules": ["shop"]}}, f"{NAME}-test", []),
    ):
        assert find(render(values), "Pod", name)["spec"]["containers"][0]["command"][4:] == call


def test_who_pulls_and_where_it_runs_holds_for_all_pods() -> None:
    objects = render(OTHER_WAY)
    for name, pod in pods(objects):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}], name
        for container in pod["spec"]["containers"]:
            assert container["image"] == "actorgrid@sha256:" + "0" * 64
    spec = node_pod(objects, "shop-grid")["spec"]
    assert spec["nodeSelector"] == {"pool": "grid"}
    assert spec["tolerations"] == OTHER_WAY["nodes"]["tolerations"]
    assert spec["affinity"] == OTHER_WAY["nodes"]["affinity"]
    assert spec["priorityClassName"] == "high"
    metadata = node_pod(objects, "shop-grid")["metadata"]
    assert metadata["annotations"]["example.com/a"] == "1"
    assert metadata["labels"]["example.com/b"] == "2"


def test_notes_say_how_to_reach_it_and_what_time_there_is() -> None:
    text = rendering.notes()
    for part in (
        f"{NAME}.prod.svc.cluster.local:7400",
        f"{NAME}-caller",
        "base64 --decode",
        "120 s (nodes.terminationGracePeriodSeconds)",
        "--intent remove_node --estimate",
        "Counter",
    ):
        assert part in text
    assert "under-replicated" not in text
    assert "under-replicated" in rendering.notes({"nodes": {"replicas": 1}})
