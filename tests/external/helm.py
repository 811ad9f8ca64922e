"""The chart in conf/helm/ by Helm's own library (PyPI's `helm-python-sdk`): `make test-helm`. Its linter has nothing to say, what it
renders is YAML, and the rendered configuration and policy pass `tiergate check`.
"""

import os
import pathlib
import socket
import subprocess
import tempfile

import helm_python
import yaml

PROJECT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("TIERGATE", PROJECT / "target/debug/tiergate"))
CHART = PROJECT / "conf/helm"


def rendered(values):
    texts = helm_python.Chart.load(CHART).render(values, name="gate", namespace="proxies").values()
    found = [document for text in texts for document in yaml.safe_load_all(text) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"


def check(manifests):
    config = yaml.safe_load(manifests["ConfigMap", "gate-config"]["data"]["tiergate.yaml"])
    policy = manifests["Secret", "gate-policy"]["stringData"]["policy.yaml"]
    assert config["listen"] == "[::]:8080" and config["access_log"] == {"path": "-"}, config
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "policy.yaml").write_text(policy)
        # Those of the pod are not here.
        config |= {"policy": "policy.yaml", "listen": free_address(), "admin": free_address()}
        (folder / "tiergate.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run([BINARY, "check", "--config", "tiergate.yaml", "--without-secrets"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def main():
    findings = helm_python.lint(CHART)
    worse = [message for message in findings["messages"] if message["severity"] > 1]
    assert not findings["errors"] and not worse, findings
    manifests = rendered({})
    assert {kind for kind, _ in manifests} == {"ConfigMap", "Secret", "Deployment", "Service", "PodDisruptionBudget"}
    check(manifests)
    container = manifests["Deployment", "gate"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "tiergate:0.1.0", container
    other = rendered({"existingPolicySecret": "mine", "credentialsSecret": "upstreams", "replicas": 1,
                      "serviceMonitor": {"enabled": True}})
    assert ("Secret", "gate-policy") not in other and ("ServiceMonitor", "gate") in other
    volumes = other["Deployment", "gate"]["spec"]["template"]["spec"]["volumes"]
    assert [volume["name"] for volume in volumes] == ["config", "policy", "credentials"], volumes


if __name__ == "__main__":
    main()
