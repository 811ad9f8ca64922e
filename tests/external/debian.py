"""The Debian package in a Debian that has booted, with systemd as its first process: `make test-debian`.

It follows docs/install.md word by word, and then does what an operator does at night: reload, upgrade
under load, kill, restart, purge. api.openai.com is played here. Needs root, debootstrap, systemd-nspawn and openssl. The
container has a network of its own with nothing in it but loopback. The first run downloads a Debian to target/debian-image.
"""

import contextlib
import ctypes
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

PROJECT = pathlib.Path(__file__).resolve().parents[2]
SUITE = os.environ.get("SUITE", "bookworm")
IMAGE = PROJECT / "target/debian-image" / SUITE
MIRROR = os.environ.get("MIRROR", "http://deb.debian.org/debian")
INCLUDED = "systemd,systemd-sysv,dbus,init-system-helpers,logrotate,curl,ca-certificates,iproute2,procps"
PACKAGES = ("1", "2")  # revisions: the one that is installed, and the one that it is upgraded to
DEADLINE = 120
KEY = "sk-trial-0001"
UPSTREAM = "api.openai.com"
POLICY = "/etc/tiergate/policy.yaml"
LOG = "/var/log/tiergate/access.log"


def until(what, found):
    """What `found` returns, once it is true."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {what}")


class Machine:
    """A Debian in a container. Whatever is done to it is gone with it."""

    def __init__(self, folder):
        self.root = folder / "root"
        # The image has device nodes, which are copied as what they are.
        subprocess.run(["cp", "--archive", "--reflink=auto", IMAGE, self.root], check=True)
        self.console = open(folder / "console", "w+")
        self.process = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--directory", self.root, "--boot", "--private-network", "--register=no",
             "--keep-unit", "--console=pipe", f"--machine=tiergate-{os.getpid()}"],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console,
        )
        self.init = None

    def boot(self):
        self.init = until("the container's first process", self.find_init)
        until("systemd", lambda: self.run("systemctl is-system-running --wait", check=False).stdout.strip()
              in ("running", "degraded"))

    def find_init(self):
        """Its id outside. The container's manager has another child before, which makes this one."""
        for child in pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                inside = re.search(r"^NSpid:.*\t(\d+)$", pathlib.Path(f"/proc/{child}/status").read_text(), re.MULTILINE)
                if inside and inside[1] == "1":
                    return child
        return None

    def run(self, script, check=True, **variables):
        """Runs a script as root, as at a console."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root", **variables}
        done = subprocess.run(
            ["nsenter", "--target", self.init, "--all", "--wdns=/root", "sh", "-ec", script],
            env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=4 * DEADLINE,
        )
        if check and done.returncode:
            raise AssertionError(f"`{script}` ends with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def says(self, script, **variables):
        return self.run(script, **variables).stdout.strip()

    def file(self, path):
        return self.root / path.lstrip("/")

    def property(self, name, unit="tiergate"):
        return self.says(f"systemctl show --property={name} --value {unit}")

    def log(self):
        return [json.loads(line) for line in self.file(LOG).read_text().splitlines()]

    def network(self):
        """From here on this process has the container's network."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.init}/ns/net") as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")

    def stop(self):
        if self.init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self.init), signal.SIGRTMIN + 4)  # to systemd: switch off
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers as the Responses API does, and keeps what it was sent."""

    protocol_version = "HTTP/1.1"
    received = []
    hold = threading.Event()

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        Upstream.received.append((self.headers, body))
        request = json.loads(body)
        response = {"id": "resp_1", "object": "response", "status": "completed", "model": request["model"],
                    "service_tier": request.get("service_tier", "default"), "output": [],
                    "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}}
        self.send_response(200)
        if not request.get("stream"):
            answer = json.dumps(response).encode()
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            return
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.event({"type": "response.created"})
        Upstream.hold.wait(DEADLINE)
        self.event({"type": "response.completed", "response": response})
        self.wfile.write(b"0\r\n\r\n")

    def event(self, event):
        piece = f"data: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    @classmethod
    def serve(cls, folder):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), cls)
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()


class Load:
    """Clients that ask one request after the other, each on a connection of its own."""

    CLIENTS = 4

    def __init__(self):
        self.failures, self.answered, self.done = [], 0, threading.Event()
        self.threads = [threading.Thread(target=self.ask_on) for _ in range(self.CLIENTS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        for thread in self.threads:
            thread.join()

    def ask_on(self):
        while not self.done.is_set():
            try:
                status, _ = post({"model": "gpt-5.5", "input": "x"})
                if status != 200:
                    self.failures.append(status)
            except OSError as why:
                self.failures.append(repr(why))
            self.answered += 1
            time.sleep(0.005)


def post(body, key=KEY, read=True):
    connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=DEADLINE)
    connection.request("POST", "/v1/responses", json.dumps(body), {
        "authorization": f"Bearer {key}", "content-type": "application/json"})
    answer = connection.getresponse()
    if not read:
        return connection, answer
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def admin(path):
    connection = http.client.HTTPConnection("127.0.0.1", 9464, timeout=DEADLINE)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def image():
    """A minimal Debian with systemd, made once."""
    if IMAGE.exists():
        return
    unfinished = IMAGE.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={INCLUDED}", SUITE, unfinished, MIRROR], check=True)
    shutil.rmtree(unfinished / "var/cache/apt/archives", ignore_errors=True)
    unfinished.rename(IMAGE)


def build(folder):
    """The package in two revisions, of the same program."""
    for revision in PACKAGES:
        subprocess.run(["cargo", "deb", "--quiet", "--no-build", "--strip", "--fast", f"--deb-revision={revision}",
                        f"--output={folder}"], cwd=PROJECT, check=True)
    return {revision: next(folder.glob(f"tiergate_*-{revision}_*.deb")) for revision in PACKAGES}


def certificates(folder):
    """For the upstream's name, by an authority of our own: a certificate that is its own authority is not taken."""
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    for command in (
        [*new, "-subj", "/CN=trial", "-keyout", "authority.key", "-out", "authority.pem"],
        [*new, "-subj", f"/CN={UPSTREAM}", "-CA", "authority.pem", "-CAkey", "authority.key", "-keyout", "key.pem",
         "-addext", f"subjectAltName=DNS:{UPSTREAM}", "-addext", "basicConstraints=critical,CA:FALSE", "-out", "cert.pem"],
    ):
        subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)


def pretend_upstream(machine, folder):
    """The container's name for the upstream leads here, and the certificate is trusted there."""
    certificates(folder)
    shutil.copy(folder / "authority.pem", machine.file("/usr/local/share/ca-certificates/trial.crt"))
    machine.run(f"update-ca-certificates; echo '127.0.0.1 {UPSTREAM}' >> /etc/hosts")
    machine.network()
    Upstream.serve(folder)


def install_blocks():
    """The shell blocks of the manual's section on the package."""
    manual = (PROJECT / "docs/install.md").read_text()
    section = manual.split("\n## Debian package\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


# What is tried, in this order: each goes on where the one before has ended.


def lintian_finds_no_error(machine, packages):
    done = subprocess.run(["lintian", "--fail-on=error", "--tag-display-limit=0", packages["1"]],
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout.rstrip())
    assert done.returncode == 0, "lintian finds errors"


def a_fresh_installation_runs_on_loopback_and_refuses_everybody(machine, packages):
    shutil.copy(packages["1"], machine.file("/root"))
    assert machine.says(install_blocks()[0]).endswith("\nok")
    assert machine.property("ActiveState") == "active"
    assert machine.says("systemctl is-enabled tiergate") == "enabled"
    assert admin("/readyz") == (200, "ok\n")
    status, answer = post({"model": "gpt-5.5"})
    assert (status, json.loads(answer)["error"]["code"]) == (401, "invalid_api_key")
    listening = machine.says("ss -Hltn | awk '{print $4}' | grep -v ':443$' | sort | xargs")
    assert listening == "127.0.0.1:8080 127.0.0.1:9464", listening


def keys_can_be_read_by_root_and_the_proxy_only(machine, packages):
    modes = machine.says("stat -c '%a %U:%G %n' /etc/tiergate /etc/tiergate/* /var/log/tiergate /var/log/tiergate/*")
    assert modes.splitlines() == [
        "750 root:tiergate /etc/tiergate",
        "640 root:tiergate /etc/tiergate/policy.yaml",
        "640 root:tiergate /etc/tiergate/tiergate.yaml",
        "750 tiergate:tiergate /var/log/tiergate",
        "640 tiergate:tiergate /var/log/tiergate/access.log",
    ], modes


def the_manual_leads_to_a_forced_request(machine, packages):
    print(machine.says(install_blocks()[1], OPENAI_API_KEY=KEY))
    headers, body = Upstream.received[-1]
    assert json.loads(body)["service_tier"] == "priority", body
    assert headers["authorization"] == f"Bearer {KEY}"
    line = machine.log()[-1]
    assert (line["key"], line["group"], line["service_tier"], line["outcome"]) == ("alice", "codex-fast", "priority", "ok")


def the_manual_leads_to_a_key_that_only_the_proxy_has(machine, packages):
    machine.run(install_blocks()[2], OPENAI_API_KEY="sk-upstream")
    until("the proxy", lambda: machine.property("ActiveState") == "active")
    assert post({"model": "gpt-5.5"})[0] == 200
    headers, _ = Upstream.received[-1]
    assert headers["authorization"] == "Bearer sk-upstream"
    secret = machine.run("setpriv --reuid=tiergate --regid=tiergate --clear-groups cat /etc/tiergate/openai.key", check=False)
    assert secret.returncode != 0, "the proxy's user can read the file itself"


def the_hardening_is_in_force(machine, packages):
    rating = machine.says("systemd-analyze security --no-pager tiergate | tail -n 1")
    print(rating)
    assert float(re.search(r"([0-9.]+) [A-Z]+", rating)[1]) < 1.6, rating
    main = machine.property("MainPID")
    status = dict(line.split(":\t", 1) for line in machine.says(f"cat /proc/{main}/status").splitlines() if ":\t" in line)
    assert (status["NoNewPrivs"], status["Seccomp"], status["CapEff"].strip("0")) == ("1", "2", ""), status
    assert status["CapBnd"].strip("0") == "", status["CapBnd"]
    inside = f"nsenter --target {main} --mount"
    for forbidden in ("touch /etc/x", "touch /usr/x", "touch /home/x", "touch /root/x", "ls /root/x"):
        done = machine.run(f"{inside} {forbidden}", check=False)
        assert done.returncode != 0, forbidden
    assert machine.says(f"{inside} sh -c 'touch /var/log/tiergate/x && rm /var/log/tiergate/x && echo written'") == "written"
    users = machine.says(f"cat /proc/{main}/uid_map").split()
    assert users[-1] != "4294967295", "the process has a user namespace of its own"


def a_policy_with_a_mistake_fails_the_reload_and_nothing_else(machine, packages):
    good, main = machine.file(POLICY).read_text(), machine.property("MainPID")
    revision = json.loads(admin("/status")[1])["policy"]["revision"]
    machine.file(POLICY).write_text(good.replace("group: codex-fast", "group: codex-fats"))
    done = machine.run("systemctl reload tiergate", check=False)
    assert done.returncode != 0
    until("the mistake", lambda: "codex-fats" in (json.loads(admin("/status")[1])["policy"]["last_error"] or ""))
    assert (machine.property("ActiveState"), machine.property("MainPID")) == ("active", main)
    assert json.loads(admin("/status")[1])["policy"]["revision"] == revision
    assert post({"model": "gpt-5.5"})[0] == 200
    mistake = machine.says("journalctl --no-pager -o cat -p err -u tiergate")
    assert "did you mean `codex-fast`?" in mistake, mistake
    machine.file(POLICY).write_text(good)
    machine.run("systemctl reload tiergate")
    assert json.loads(admin("/status")[1])["policy"]["last_error"] is None


def the_log_is_rotated_without_a_loss(machine, packages):
    before = len(machine.log())
    with Load() as load:
        until("some answers", lambda: load.answered > 20)
        machine.run("logrotate --force /etc/logrotate.d/tiergate")
        until("more answers", lambda: load.answered > 60)
    rotated = machine.says("ls /var/log/tiergate").splitlines()
    old = next(name for name in rotated if name != "access.log")
    lines = machine.file(f"/var/log/tiergate/{old}").read_text().splitlines() + machine.file(LOG).read_text().splitlines()
    assert not load.failures, load.failures
    assert len(lines) == before + load.answered, (len(lines), before, load.answered)


def upgrade(machine, how):
    """An upgrade under load, with a stream that runs through it."""
    old = machine.property("MainPID")
    Upstream.hold.clear()
    connection, stream = post({"model": "gpt-5.5", "stream": True}, read=False)
    with Load() as load:
        until("some answers", lambda: load.answered > 20)
        how()
        until("another main process", lambda: machine.property("MainPID") not in (old, "0"))
        answered = load.answered
        until("more answers", lambda: load.answered > answered + 20)
    assert not load.failures, load.failures
    assert machine.property("ActiveState") == "active"
    Upstream.hold.set()
    assert "response.completed" in stream.read().decode(), "the stream is whole"
    connection.close()
    until("the end of the old process", lambda: machine.run(f"test -d /proc/{old}", check=False).returncode != 0)
    assert machine.property("NRestarts") == "0"
    return load.answered


def the_documented_upgrade_refuses_no_connection(machine, packages):
    for _ in range(3):
        answered = upgrade(machine, lambda: machine.run("systemctl kill --kill-whom=main -s USR2 tiergate"))
    print(f"{answered} requests during the last of three upgrades, none failed")


def an_upgrade_of_the_package_keeps_what_was_edited_and_refuses_no_connection(machine, packages):
    edited = machine.file("/etc/tiergate/tiergate.yaml").read_text()
    shutil.copy(packages["2"], machine.file("/root"))
    answered = upgrade(machine, lambda: machine.run("apt-get install --yes ./tiergate_*-2_*.deb"))
    assert machine.says("dpkg-query -W -f '${Version}' tiergate").endswith("-2")
    assert machine.file("/etc/tiergate/tiergate.yaml").read_text() == edited
    print(f"{answered} requests during the upgrade of the package, none failed")
    modes = machine.says("stat -c '%a %U:%G' /etc/tiergate/policy.yaml /etc/tiergate/openai.key")
    assert modes.splitlines() == ["640 root:tiergate", "600 root:root"], modes


def a_process_that_hangs_is_killed_by_the_watchdog_and_started_anew(machine, packages):
    machine.run("mkdir -p /run/systemd/system/tiergate.service.d; printf '[Service]\\nWatchdogSec=2\\n' "
                "> /run/systemd/system/tiergate.service.d/trial.conf; systemctl daemon-reload; systemctl restart tiergate")
    main = machine.property("MainPID")
    time.sleep(5)
    assert machine.property("MainPID") == main, "one that serves is left alone"
    machine.run(f"kill -STOP {main}")
    until("a new process", lambda: machine.property("NRestarts") == "1" and machine.property("ActiveState") == "active")
    assert post({"model": "gpt-5.5"})[0] == 200
    assert "Watchdog timeout" in machine.says("journalctl --no-pager -u tiergate")
    machine.run("rm /run/systemd/system/tiergate.service.d/trial.conf; systemctl daemon-reload; systemctl restart tiergate")


def a_stop_lets_streams_end(machine, packages):
    Upstream.hold.clear()
    connection, stream = post({"model": "gpt-5.5", "stream": True}, read=False)
    machine.run("systemctl stop --no-block tiergate")
    until("the drain", lambda: machine.property("ActiveState") == "deactivating")
    assert admin("/readyz")[0] == 503
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 8080), 1)
        raise AssertionError("a process that drains accepts a connection")
    Upstream.hold.set()
    assert "response.completed" in stream.read().decode()
    connection.close()
    until("the end", lambda: machine.property("ActiveState") == "inactive")
    assert machine.property("Result") == "success"
    assert machine.log()[-1]["outcome"] == "ok"
    machine.run("systemctl start tiergate")
    assert admin("/readyz")[0] == 200


def a_bad_configuration_fails_the_start_once_and_says_why(machine, packages):
    path = machine.file("/etc/tiergate/tiergate.yaml")
    good = path.read_text()
    path.write_text(good.replace("listen:", "lisen:"))
    assert machine.run("systemctl restart tiergate", check=False).returncode != 0
    told = machine.says("journalctl --no-pager -o cat -u tiergate -n 20")
    assert "did you mean `listen`?" in told, told
    time.sleep(3)  # longer than RestartSec
    assert (machine.property("ActiveState"), machine.property("NRestarts")) == ("failed", "0")
    path.write_text(good)
    machine.run("systemctl reset-failed tiergate; systemctl start tiergate")


def a_removal_stops_it_and_a_purge_leaves_nothing_behind(machine, packages):
    print(machine.says("journalctl --no-pager -u tiergate -n 8"))
    machine.run("apt-get remove --yes tiergate")
    assert machine.run("ss -Hltn | grep -q ':8080 '", check=False).returncode != 0
    assert machine.file(LOG).exists() and machine.file(POLICY).exists(), "a removal keeps log and configuration"
    machine.run("rm /etc/tiergate/openai.key; apt-get purge --yes tiergate")
    left = machine.says("find / -xdev -path /proc -prune -o -path /sys -prune -o -name '*tiergate*' -print")
    # What the trial itself has put there.
    left = [path for path in left.splitlines() if not path.startswith(("/root/", "/etc/systemd/system/tiergate.service.d"))]
    assert left == [], left
    assert "tiergate" in machine.says("getent passwd tiergate"), "the user stays, so that nobody gets its number"
    units = machine.says("systemctl list-units --all --plain --no-legend 'tiergate*'")
    assert "active" not in units.split(), units


STEPS = [
    lintian_finds_no_error,
    a_fresh_installation_runs_on_loopback_and_refuses_everybody,
    keys_can_be_read_by_root_and_the_proxy_only,
    the_manual_leads_to_a_forced_request,
    the_manual_leads_to_a_key_that_only_the_proxy_has,
    the_hardening_is_in_force,
    a_policy_with_a_mistake_fails_the_reload_and_nothing_else,
    the_log_is_rotated_without_a_loss,
    the_documented_upgrade_refuses_no_connection,
    an_upgrade_of_the_package_keeps_what_was_edited_and_refuses_no_connection,
    a_process_that_hangs_is_killed_by_the_watchdog_and_started_anew,
    a_stop_lets_streams_end,
    a_bad_configuration_fails_the_start_once_and_says_why,
    a_removal_stops_it_and_a_purge_leaves_nothing_behind,
]


def main():
    image()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        packages = build(folder)
        machine = Machine(folder)
        try:
            machine.boot()
            pretend_upstream(machine, folder)
            for step in STEPS:
                print(f"-- {step.__name__.replace('_', ' ')}", flush=True)
                step(machine, packages)
        except BaseException:
            if machine.init:
                print(machine.run("journalctl --no-pager -n 60", check=False).stdout, file=sys.stderr)
            raise
        finally:
            machine.stop()
    print(f"{len(STEPS)} steps passed")


if __name__ == "__main__":
    main()
