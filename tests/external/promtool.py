"""The rules and the dashboard in conf/ against Prometheus's own tool: `make test-monitoring`. Needs promtool (Debian's
`prometheus`) and openssl.

promtool reads the rules, plays tests/alerts.yml against them, parses each expression of the dashboard, and judges the text that
a busy proxy answers on /metrics.
"""

import json
import pathlib
import re
import subprocess
import tempfile
import urllib.request

from page import PROJECT, busy_proxy

# What Grafana puts in the place of its variables.
VARIABLES = {"$job": ".*", "$group": ".*", "$__rate_interval": "5m"}

# What the traffic of a proxy without trouble does not have; that there are such metrics is tested by `cargo test`.
RARE = {"tiergate_usage_missing_total", "tiergate_budget_used_ratio"}


def promtool(*arguments, **options):
    subprocess.run(["promtool", *arguments], check=True, **options)


def expressions():
    dashboard = json.loads((PROJECT / "conf/grafana-dashboard.json").read_text())
    for target in (target for panel in dashboard["panels"] for target in panel.get("targets", [])):
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        yield expression


def check_dashboard(folder):
    """As recording rules: the tool parses expressions in rules only."""
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(expressions())]
    path = folder / "dashboard.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", path)


def check_metrics():
    with busy_proxy() as admin, urllib.request.urlopen(f"{admin}/metrics") as answer:
        text = answer.read()
    promtool("check", "metrics", input=text)
    named = re.findall(r"(?:tiergate|process)_[a-z_]+", (PROJECT / "conf/alerts.yml").read_text())
    missing = {name for name in named if name not in text.decode()} - RARE
    # Counters with labels have no series before their first event; this proxy has had one of each but the rare ones.
    assert not missing, f"a busy proxy has no {missing}"


def main():
    promtool("check", "config", PROJECT / "conf/prometheus.yml")
    promtool("test", "rules", PROJECT / "tests/alerts.yml")
    with tempfile.TemporaryDirectory() as folder:
        check_dashboard(pathlib.Path(folder))
    check_metrics()


if __name__ == "__main__":
    main()
