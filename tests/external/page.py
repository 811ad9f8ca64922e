"""Opens the admin page in headless Chromium, tests it, and takes the pictures for docs/metrics.md: `make picture`. Needs
chromium and openssl.

A proxy on free ports serves three groups for a while; the upstream is in this file. Nothing in the pictures is made up but the
names. Chromium is driven through its own pipe (the DevTools protocol), so that widths, the dark scheme and errors of the console
can be tested.
"""

import base64
import contextlib
import http.client
import http.server
import json
import math
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
PICTURES = PROJECT / "docs/images"
DEADLINE = 30
# Each sample of the charts is of ten seconds.
TRAFFIC_SECONDS = int(os.environ.get("TIERGATE_SECONDS", 150))
# The budget is far from used up, however many requests the machine sends.
POLICY = """\
version: 1
groups:
  codex-fast: {platform: openai, force_fast_mode: true, budget: {usd: "80.00", per: day}}
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
        served = "default" if tier == "priority" and random.random() < self.server.downgrading else tier
        time.sleep(random.uniform(0.02, 0.12))
        answer = json.dumps({
            "object": "response", "status": "completed", "service_tier": served,
            "usage": {"input_tokens": random.randrange(500, 9000), "output_tokens": random.randrange(50, 900)}}).encode()
        self.send_response(500 if random.random() < self.server.failing else 200)
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
        "admin": f"127.0.0.1:{admin}", "policy": "policy.yaml", "prices": str(PROJECT / "conf/prices.yaml"), "access_log": {"path": "access.log"},
        "upstreams": {"openai": {"url": f"http://127.0.0.1:{upstream}", "credential_file": None}}}))
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
def running_proxy():
    """The upstream, and the ports of a proxy before it: for clients and for the admin listener."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.downgrading, server.failing = 0.01, 0.004
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        port, admin = configure(folder, server.server_port)
        proxy = subprocess.Popen([BINARY, "run", "--config", folder / "tiergate.yaml"], stderr=subprocess.DEVNULL)
        try:
            await_listener(port)
            yield server, port, admin
        finally:
            proxy.terminate()
            proxy.wait(DEADLINE)


@contextlib.contextmanager
def busy_proxy():
    """The address of the admin listener of a proxy that has served a few hundred requests."""
    with running_proxy() as (server, port, admin):
        server.downgrading, server.failing = 0.125, 0.02
        for key, count in (("sk-1", 160), ("sk-2", 90), ("sk-3", 30), ("sk-gone", 4)):
            for number in range(count):
                ask(port, key, **({"service_tier": "flex"} if number % 3 == 0 else {}))
        yield f"http://127.0.0.1:{admin}"


def send_for(seconds, port):
    """A few requests a second, more and fewer by turns."""
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        key = random.choices(("sk-1", "sk-2", "sk-3", "sk-gone"), (60, 30, 9, 1))[0]
        ask(port, key, **({"service_tier": "flex"} if key == "sk-2" and random.random() < 0.3 else {}))
        time.sleep(0.06 + 0.1 * (1 + math.sin(passed / 20)))


class Browser:
    """Chromium without a window, and one page in it."""

    def __init__(self, profile):
        program = shutil.which("chromium") or "chromium-browser"
        to_browser, self.commands = os.pipe()
        self.answers, from_browser = os.pipe()
        # The protocol's pipe is on descriptors 3 and 4.
        self.process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "sh", program, "--headless=new", "--no-sandbox",
             "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.read, self.number, self.session, self.complaints = b"", 0, None, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def close(self):
        self.process.terminate()
        self.process.wait(DEADLINE)
        os.close(self.commands)
        os.close(self.answers)

    def ask(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.next()).get("id") != self.number:
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(answer["params"])
        assert "error" not in answer, answer
        return answer["result"]

    def next(self):
        while b"\0" not in self.read:
            more = os.read(self.answers, 1 << 20)
            assert more, "the browser has ended"
            self.read += more
        message, _, self.read = self.read.partition(b"\0")
        return json.loads(message)

    def says(self, expression):
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def await_true(self, expression):
        end = time.monotonic() + DEADLINE
        while not self.says(expression):
            assert time.monotonic() < end, f"{expression}: {self.says('document.body.innerText')}"
            time.sleep(0.1)

    def open(self, address, width, height, scheme="light"):
        phone = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=address)
        self.await_true("document.getElementById('groups')?.rows.length > 2")

    def picture(self, name):
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=False)
        (PICTURES / name).write_bytes(base64.b64decode(shot["data"]))


def text(browser, id):
    return browser.says(f"document.getElementById('{id}').innerText")


def a_quiet_proxy_is_well(browser, address):
    browser.open(address, 1180, 1000)
    assert text(browser, "verdict") == "All is well", text(browser, "verdict")
    assert browser.says("document.title") == "tiergate"
    drawn = browser.says("[...document.querySelectorAll('.line')].filter((line) => line.getAttribute('d')).length")
    assert drawn == 5, f"{drawn} charts"
    assert "priority" in text(browser, "tiers") and "flex" in text(browser, "tiers")
    assert text(browser, "spent").count("$") == 1, text(browser, "spent")
    links = browser.says("[...document.links].map((link) => link.getAttribute('href')).join()")
    assert links == "status,metrics,readyz,healthz", links


def it_fits_a_phone(browser, address):
    browser.open(address, 390, 1400)
    assert browser.says("document.documentElement.scrollWidth") <= 390
    name = browser.says("getComputedStyle(document.querySelector('#groups td'), '::before').content")
    assert name == 'attr(data-name)' or 'group' in name, name


def it_follows_the_dark_scheme(browser, address):
    grounds = []
    for scheme in ("light", "dark"):
        browser.open(address, 1180, 1000, scheme)
        grounds.append(browser.says("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1], grounds


def what_is_wrong_stands_on_top(browser, address, server, port):
    server.failing = server.downgrading = 0.5
    browser.open(address, 1180, 1000)
    # A share of all requests counts, and how many those are depends on the machine.
    end = time.monotonic() + DEADLINE
    while browser.says("document.getElementById('verdict').className") != "critical":
        assert time.monotonic() < end, text(browser, "problems")
        ask(port, "sk-1")
    assert "failed at their upstream" in text(browser, "problems"), text(browser, "problems")
    browser.await_true("document.querySelector('#groups tr.critical') !== null")
    assert browser.says("document.title").startswith("(!) ")


def main():
    with running_proxy() as (server, port, admin), tempfile.TemporaryDirectory() as profile:
        address = f"http://127.0.0.1:{admin}/"
        send_for(TRAFFIC_SECONDS, port)
        browser = Browser(profile)
        try:
            a_quiet_proxy_is_well(browser, address)
            browser.picture("page.png")
            it_fits_a_phone(browser, address)
            browser.picture("page-phone.png")
            it_follows_the_dark_scheme(browser, address)
            browser.picture("page-dark.png")
            what_is_wrong_stands_on_top(browser, address, server, port)
            browser.picture("page-problems.png")
            # Nothing was refused by the page's own policy, and nothing failed in its script.
            assert not browser.complaints, browser.complaints
        finally:
            browser.close()


if __name__ == "__main__":
    main()
