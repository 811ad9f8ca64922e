"""Takes the picture of the admin page that docs/metrics.md shows: `make picture`. Needs chromium and openssl.

A proxy on free ports serves three groups for a while; the upstream is in this file. Nothing in the picture is made up but the
names.
"""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time

PROJECT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("TIERGATE", PROJECT / "target/debug/tiergate"))
PICTURE = PROJECT / "docs/images/page.png"
DEADLINE = 30
POLICY = """\
version: 1
groups:
  codex-fast: {platform: openai, force_fast_mode: true}
  codex: {platform: openai}
  claude: {platform: anthropic}
keys:
  sk-1: {group: codex-fast, name: alice}
  sk-2: {group: codex, name: ci-bot}
  sk-3: {group: claude, name: bob}
"""


class Upstream(http.server.BaseHTTPRequestHandler):
    """Serves one priority request in eight on the default tier, and fails now and then."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        tier = request.get("service_tier", "default")
        served = "default" if tier == "priority" and random.random() < 0.125 else tier
        answer = json.dumps({
            "object": "response", "status": "completed", "service_tier": served,
            "usage": {"input_tokens": random.randrange(500, 9000), "output_tokens": random.randrange(50, 900)}}).encode()
        self.send_response(500 if random.random() < 0.02 else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def configure(folder, upstream):
    plain, tls, admin = free_ports(3)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "81", "-subj", "/CN=proxy",
                    "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, stderr=subprocess.DEVNULL)
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "tiergate.yaml").write_text(json.dumps({
        "listen": [f"127.0.0.1:{plain}", {"address": f"127.0.0.1:{tls}", "tls": {"cert": "cert.pem", "key": "key.pem"}}],
        "admin": f"127.0.0.1:{admin}", "policy": "policy.yaml", "access_log": {"path": "access.log"},
        "upstreams": {"openai": {"url": f"http://127.0.0.1:{upstream}"}}}))
    return plain, admin


def await_listener(port):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("the proxy does not listen")


def ask(port, key, **body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request("POST", "/v1/responses", json.dumps({"model": "gpt-5.5", "input": "x", **body}),
                       {"authorization": f"Bearer {key}", "content-type": "application/json"})
    connection.getresponse().read()
    connection.close()


@contextlib.contextmanager
def busy_proxy():
    """The address of the admin listener of a proxy that has served a few hundred requests."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        port, admin = configure(folder, server.server_port)
        proxy = subprocess.Popen([BINARY, "run", "--config", folder / "tiergate.yaml"], stderr=subprocess.DEVNULL)
        try:
            await_listener(port)
            for key, count in (("sk-1", 160), ("sk-2", 90), ("sk-3", 30), ("sk-gone", 4)):
                for number in range(count):
                    ask(port, key, **({"service_tier": "flex"} if number % 3 == 0 else {}))
            yield f"http://127.0.0.1:{admin}"
        finally:
            proxy.terminate()
            proxy.wait(DEADLINE)


def main():
    browser = shutil.which("chromium") or "chromium-browser"
    with busy_proxy() as admin, tempfile.TemporaryDirectory() as profile:
        subprocess.run([browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1080,760",
                        "--virtual-time-budget=4000", f"--user-data-dir={profile}", f"--screenshot={PICTURE}", f"{admin}/"],
                       check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
