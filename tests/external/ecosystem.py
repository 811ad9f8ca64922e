"""The examples for databases and log shippers, tried on an access log that the proxy wrote: `make test-ecosystem`.

What the sums have to be is worked out from what the upstream said, not from the log. ClickHouse (chdb) and DuckDB come from
PyPI and have to be there. Fluent Bit is tried where FLUENT_BIT names the program; it is said where it is not.
"""

import base64
import collections
import contextlib
import decimal
import gzip
import hashlib
import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse

import chdb.session
import duckdb

PROJECT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("TIERGATE", PROJECT / "target/debug/tiergate"))
FLUENT_BIT = os.environ.get("FLUENT_BIT")
DEADLINE = 30

# USD per million tokens: input, cached input, output.
PRICES = {
    ("gpt-priced", "default"): ("1.25", "0.125", "10"),
    ("gpt-priced", "priority"): ("2.5", "0.25", "20"),
}
KEYS = {"sk-alice": ("codex-fast", "alice"), "sk-bob": ("codex", "bob")}


WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def text_frame(text, mask):
    """A whole text message; a client's is masked, here with zeros."""
    payload = text.encode()
    length = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return bytes([0x81, mask << 7 | length[0]]) + length[1:] + bytes(4 * mask) + payload


def read_text(stream):
    """The next text message, if there is one before the close."""
    head = stream.read(2)
    if len(head) < 2 or head[0] & 0x0F != 1:
        return None
    length = head[1] & 0x7F
    if length >= 126:
        length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
    mask = stream.read(4) if head[1] & 0x80 else bytes(4)
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(stream.read(length))).decode()


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers as the Responses API does, each time with another usage, and notes what it said."""

    protocol_version = "HTTP/1.1"
    said = []
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if request["model"] == "gpt-down":
            return self.answer(500, "application/json", b'{"error":{"message":"down","type":"server_error"}}')
        response = self.respond(request)
        if request.get("stream"):
            event = json.dumps({"type": "response.completed", "response": response})
            return self.answer(200, "text/event-stream", f"event: response.completed\ndata: {event}\n\n".encode())
        self.answer(200, "application/json", json.dumps(response).encode())

    def do_GET(self):
        """A WebSocket on which each message asks for a response."""
        accept = hashlib.sha1((self.headers["sec-websocket-key"] + WEBSOCKET_GUID).encode()).digest()
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(accept).decode())
        self.end_headers()
        self.close_connection = True
        while message := read_text(self.rfile):
            response = self.respond(json.loads(message))
            self.wfile.write(text_frame(json.dumps({"type": "response.completed", "response": response}), mask=False))

    def respond(self, request):
        with self.lock:
            number = len(self.said)
            usage = (1000 + 7 * number, 100 + number, 50 + 3 * number, number)
            served = "default" if request.get("metadata", {}).get("busy") else request.get("service_tier", "default")
            self.said.append((request["model"], served, usage))
        return {
            "id": f"resp_{number}", "object": "response", "status": "completed", "model": request["model"],
            "service_tier": served, "output": [],
            "usage": {
                "input_tokens": usage[0], "input_tokens_details": {"cached_tokens": usage[1]},
                "output_tokens": usage[2], "output_tokens_details": {"reasoning_tokens": usage[3]},
                "total_tokens": usage[0] + usage[2],
            },
        }

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Store(http.server.BaseHTTPRequestHandler):
    """ClickHouse's HTTP interface as far as a shipper sees it. Its first answer is lost, so that the batch comes twice."""

    protocol_version = "HTTP/1.1"
    queries, rows = set(), []
    failures = 1

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        Store.queries.add(urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["query"][0])
        Store.rows.extend(body.decode().splitlines())
        lost, Store.failures = Store.failures > 0, Store.failures - 1
        self.send_response(500 if lost else 200)
        self.send_header("content-length", "0")
        self.end_headers()


def serve(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def wait_for(what, happened):
    end = time.monotonic() + DEADLINE
    while not happened():
        if time.monotonic() > end:
            raise AssertionError(f"not within {DEADLINE} s: {what}")
        time.sleep(0.02)


class Proxy:
    """The binary with a configuration of its own, before the scripted upstream."""

    def __init__(self, folder):
        self.folder, self.port, self.log = folder, free_port(), folder / "access.log"
        tiers = ", ".join(
            f"{tier}: {{input: {i}, cached_input: {c}, output: {o}}}" for (_, tier), (i, c, o) in PRICES.items()
        )
        keys = "".join(f"  {key}: {{group: {group}, name: {name}}}\n" for key, (group, name) in KEYS.items())
        (folder / "prices.yaml").write_text(f"version: 1\nprices:\n  - models: [gpt-priced]\n    tiers: {{{tiers}}}\n")
        (folder / "policy.yaml").write_text(
            "version: 1\ngroups:\n  codex-fast: {platform: openai, force_fast_mode: true}\n"
            f"  codex: {{platform: openai}}\nkeys:\n{keys}"
        )
        (folder / "tiergate.yaml").write_text(
            f"listen: 127.0.0.1:{self.port}\nadmin: 127.0.0.1:{free_port()}\npolicy: policy.yaml\nprices: prices.yaml\n"
            f"upstreams: {{openai: {{url: 'http://127.0.0.1:{serve(Upstream)}'}}}}\naccess_log: {{path: access.log}}\n"
        )
        self.process = subprocess.Popen([BINARY, "run", "--config", folder / "tiergate.yaml"])
        wait_for("the proxy listens", self.listens)

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def post(self, key, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        body = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", "/v1/responses", body, {"authorization": f"Bearer {key}"})
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status

    def converse(self, key, messages):
        """Asks for responses on one WebSocket, each after the one before it."""
        with socket.create_connection(("127.0.0.1", self.port), DEADLINE) as connection:
            connection.sendall(
                f"GET /v1/responses HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\nupgrade: websocket\r\n"
                "connection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            stream = connection.makefile("rb")
            assert b" 101 " in stream.readline()
            while stream.readline() != b"\r\n":
                pass
            for message in messages:
                connection.sendall(text_frame(json.dumps({"type": "response.create", **message}), mask=True))
                assert read_text(stream)
            connection.sendall(b"\x88\x80" + bytes(4))

    def rotate(self):
        self.log.rename(self.folder / "access.log.1")
        self.process.send_signal(signal.SIGUSR1)
        wait_for("the log is opened anew", self.log.exists)

    def stop(self):
        self.process.terminate()
        return self.process.wait(DEADLINE)


def traffic(proxy):
    """What each key is to be billed for, by its group, name, model and tier."""
    expected = collections.defaultdict(lambda: [0, 0, 0, 0, 0, decimal.Decimal(0), 0])

    def ask(key, model, **more):
        status = proxy.post(key, {"model": model, "input": "hi", **more})
        assert status == (500 if model == "gpt-down" else 200), status
        if model == "gpt-down":
            sent = "priority" if key == "sk-alice" else None
            expected[(*KEYS[key], model, sent)][0] += 1
            return
        add(key, model)

    def add(key, model, said=-1):
        _, served, usage = Upstream.said[said]
        row = expected[(*KEYS[key], model, served)]
        for index, count in enumerate((1, *usage)):
            row[index] += count
        price = PRICES.get((model, served))
        if price is None:
            row[6] += 1
            return
        each_input, each_cached, each_output = map(decimal.Decimal, price)
        cost = (usage[0] - usage[1]) * each_input + usage[1] * each_cached + usage[2] * each_output
        row[5] += cost / 1_000_000

    for number in range(40):
        ask("sk-alice", "gpt-priced", stream=number % 2 == 0)
        ask("sk-bob", "gpt-priced", stream=number % 3 == 0)
        if number == 20:
            proxy.rotate()
    ask("sk-alice", "gpt-priced", metadata={"busy": True})
    ask("sk-bob", "gpt-priced", service_tier="flex")
    ask("sk-alice", "gpt-unknown")
    ask("sk-alice", "gpt-down")
    proxy.converse("sk-alice", [{"model": "gpt-priced", "input": "hi"}] * 3)
    for said in (-3, -2, -1):
        add("sk-alice", "gpt-priced", said)
    assert proxy.post("sk-alice", '{"model":') == 400
    assert proxy.post("sk-nobody", "{}") == 401
    return {key: tuple(row) for key, row in expected.items()}


# Of plain requests, of the odd ones, of a WebSocket: three responses and the connection.
LINES = 80 + 6 + 4


def sections(path):
    """The statements of an SQL file by the names of its headings."""
    found, name = {}, None
    for line in path.read_text().splitlines():
        if line.startswith("-- == "):
            name = line.strip("-= ")
            found[name] = ""
        elif name and not line.startswith("--"):
            found[name] += line + "\n"
    return {name: [part for part in text.split(";") if part.strip()] for name, text in found.items()}


SQL = sections(PROJECT / "conf/clickhouse.sql")


class ClickHouse:
    """A database of its own, made by the table section of the example."""

    def __init__(self, folder):
        self.folder, self.session = folder, chdb.session.Session()
        # Decimals as they are, and numbers of 64 bits alike in every release.
        self.session.query("SET output_format_json_quote_decimals = 1, output_format_json_quote_64bit_integers = 1")
        self.run("table")

    def run(self, section):
        for statement in SQL[section]:
            # `file` is relative to the server's folder, here the logs'.
            statement = statement.replace("file('access.log*'", f"file('{self.folder}/access.log*'")
            answer = self.rows(statement)
        return answer

    def rows(self, statement):
        text = self.session.query(statement, "JSONCompactEachRow").bytes()
        return [json.loads(line) for line in (text or b"").splitlines()]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.close()


class Ecosystem(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.proxy = Proxy(cls.folder)
        try:
            cls.expected = traffic(cls.proxy)
        finally:
            cls.code = cls.proxy.stop()
        # As logrotate leaves it.
        old = cls.folder / "access.log.1"
        with gzip.open(cls.folder / "access.log.2.gz", "wb") as packed:
            packed.write(old.read_bytes())

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def billed(self, rows):
        """Rows of group, key, model, tier, requests, four token counts, cost, unpriced, as `traffic` has them."""
        return {
            tuple(row[:4]): (*(int(count or 0) for count in row[4:9]), decimal.Decimal(row[9] or 0), int(row[10]))
            for row in rows
        }

    def test_clickhouse_bills_what_the_upstream_said_however_often_a_file_is_imported(self):
        with ClickHouse(self.folder) as database:
            for _ in range(3):
                # Each time the first part comes twice, plain and compressed.
                database.run("import")
            [[count]] = database.rows("SELECT count() FROM tiergate.access FINAL")
            self.assertEqual(int(count), LINES)
            # Without the month and the cache writes, of which there are none.
            invoice = [[*row[1:8], *row[9:]] for row in database.run("invoice")]
            self.assertEqual(self.billed(invoice), self.expected)

    def test_clickhouse_tells_what_was_sent_and_what_was_served(self):
        with ClickHouse(self.folder) as database:
            database.run("import")
            tiers = {(row[0], row[1]): [int(number) for number in row[2:6]] for row in database.run("tiers")}
            # Requests, changed from the client's, not sent as priority, downgraded.
            self.assertEqual(tiers, {
                ("codex", "client"): [1, 1, 1, 0],
                ("codex", "none"): [40, 40, 40, 0],
                ("codex-fast", "group_force"): [46, 46, 0, 1],
            })
            self.assertEqual(database.run("unbilled"), [["openai", "responses", "upstream_error", "none", "1", "50"]])

    def test_clickhouse_names_the_process_of_which_a_line_is_missing(self):
        with ClickHouse(self.folder) as database:
            database.run("import")
            self.assertEqual(database.run("lost"), [])
            [[instance]] = database.rows("SELECT any(instance) FROM tiergate.access")
            database.rows("ALTER TABLE tiergate.access DELETE WHERE seq = 33 SETTINGS mutations_sync = 2")
            self.assertEqual(database.run("lost"), [[instance, str(LINES - 1), "1"]])

    def test_clickhouse_sums_up_the_teams(self):
        with ClickHouse(self.folder) as database:
            database.run("import")
            total = database.run("teams")[-1]
            self.assertEqual(total[1], "total")
            self.assertEqual(int(total[2]), sum(row[0] for row in self.expected.values()))
            self.assertEqual(decimal.Decimal(total[5]), sum(row[5] for row in self.expected.values()))
            database.run("models")
            database.run("refusals")

    def test_every_field_of_a_line_has_its_column(self):
        with ClickHouse(self.folder) as database:
            columns = {row[0] for row in database.rows("SELECT name FROM system.columns WHERE table = 'access'")}
            line = json.loads((self.folder / "access.log").read_text().splitlines()[0])
            self.assertEqual(columns, set(line))
            database.run("import")
            row = database.session.query(
                f"SELECT * FROM tiergate.access FINAL WHERE event_id = '{line['event_id']}'", "JSONEachRow"
            )
            stored = json.loads(row.bytes())
            for field in line:
                self.assertEqual((field, same(stored[field])), (field, same(line[field])))

    def test_duckdb_bills_what_the_upstream_said(self):
        database = duckdb.connect()
        text = (PROJECT / "conf/duckdb.sql").read_text().replace("'access.log*'", f"'{self.folder}/access.log*'")
        # Commands of the program `duckdb` itself.
        text = "\n".join(line for line in text.splitlines() if not line.startswith("."))
        rows = database.execute(text).fetchall()
        expected = {
            key: (row[0], row[1], row[3], row[5], row[6]) for key, row in self.expected.items()
        }
        # Month, group, key, model, model served, tier; requests, input, cached, written, output, cost, unpriced.
        found = collections.defaultdict(lambda: (0, 0, 0, 0, 0))
        for row in rows:
            if row[2] is not None:
                counts = (row[6], int(row[7] or 0), int(row[10] or 0), row[11] or 0, row[12])
                key = (row[1], row[2], row[3], row[5])
                found[key] = tuple(map(sum, zip(found[key], counts)))
        self.assertEqual(found, expected)
        total = rows[-1]
        self.assertEqual(total[:3], (None, None, None))
        self.assertEqual(total[6], sum(row[0] for row in expected.values()))
        self.assertEqual(total[11], sum(row[3] for row in expected.values()))

    def test_fluent_bit_loses_nothing_by_rotations_and_its_repeats_are_one(self):
        if not FLUENT_BIT:
            self.skipTest("FLUENT_BIT does not name the program")
        parts = [self.folder / "access.log.1", self.folder / "access.log"]
        lines = "".join(part.read_text() for part in parts).splitlines(keepends=True)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            log = folder / "access.log"
            log.write_text("".join(lines[:20]))
            with fluent_bit(folder, lines_so_far=20):
                rotate(log, "1", lines[20:40])
                wait_for("a rotation while it runs", lambda: len(set(Store.rows)) == 40)
            rotate(log, "2", lines[40:60])
            with fluent_bit(folder, lines_so_far=60):
                rotate(log, "3", lines[60:])
                wait_for("all lines", lambda: len(set(Store.rows)) == len(lines))
        self.assertEqual(Store.queries, {"INSERT INTO tiergate.access FORMAT JSONEachRow"})
        self.assertGreater(len(Store.rows), len(lines), "a batch came twice")
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "access.log").write_text("\n".join(Store.rows) + "\n")
            with ClickHouse(folder) as database:
                database.run("import")
                self.assertEqual(database.run("lost"), [])
                invoice = [[*row[1:8], *row[9:]] for row in database.run("invoice")]
                self.assertEqual(self.billed(invoice), self.expected)


@contextlib.contextmanager
def fluent_bit(folder, lines_so_far):
    """Fluent Bit with the example's configuration on the logs in that folder."""
    text = (PROJECT / "conf/shippers/fluent-bit.yaml").read_text()
    text = text.replace("/var/log/tiergate", str(folder)).replace("/var/lib/fluent-bit", str(folder / "fluent-bit"))
    (folder / "fluent-bit").mkdir(exist_ok=True)
    (folder / "fluent-bit.yaml").write_text(text.replace("port: 8123", f"port: {serve(Store)}"))
    process = subprocess.Popen([FLUENT_BIT, "-q", "-c", folder / "fluent-bit.yaml"])
    try:
        wait_for("the lines so far", lambda: len(set(Store.rows)) == lines_so_far)
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE)


def rotate(log, suffix, lines):
    """Writes to the end of the old file, to the new one, once more to the old, as around a rename and a signal."""
    third = len(lines) // 3
    with log.open("a") as old:
        old.write("".join(lines[:third]))
        old.flush()
        log.rename(log.with_name(f"access.log.{suffix}"))
        log.write_text("".join(lines[2 * third :]))
        old.write("".join(lines[third : 2 * third]))


def same(value):
    """A value without the spelling that differs between JSON and a column: of times, decimals and 64-bit integers."""
    text = str(value).replace("T", " ").removesuffix("Z")
    try:
        return decimal.Decimal(text).normalize()
    except decimal.InvalidOperation:
        return text


if __name__ == "__main__":
    if not BINARY.exists():
        sys.exit(f"{BINARY} is not there: `cargo build` makes it")
    unittest.main(verbosity=2)
