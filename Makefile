# What a contributor can do. Everything works with plain cargo too; this also brings in what the build needs.

CARGO ?= cargo
# The demo shows the same build that the tests use, so that a newcomer waits for one build only.
.PHONY: demo test test-ecosystem test-monitoring test-debian picture build deb lint bench bench-sockets clean tools

demo: tools
	$(CARGO) run --quiet -- demo

test: tools
	$(CARGO) test

# The examples in conf/ for databases, on a log that the proxy writes. Their programs come from PyPI, to target/ only.
# FLUENT_BIT=program has that shipper tried as well.
test-ecosystem: tools
	$(CARGO) build
	python3 -m venv target/ecosystem
	target/ecosystem/bin/pip install --quiet chdb==4.4.0 duckdb==2.0.0
	target/ecosystem/bin/python tests/ecosystem.py

# The rules, the dashboard and the metrics; promtool is in Debian's package `prometheus`.
test-monitoring: tools
	$(CARGO) build
	python3 tests/promtool.py

# The picture of the admin page in the README, by headless Chromium.
picture: tools
	$(CARGO) build
	python3 tests/page.py

# As root: in a Debian that boots in a container, from debootstrap; lintian and openssl are needed too.
test-debian: deb
	python3 tests/debian.py

build: tools
	$(CARGO) build --release

# target/debian/tiergate_*.deb
deb: tools
	command -v cargo-deb >/dev/null || $(CARGO) install --locked cargo-deb
	$(CARGO) deb --strip

lint: tools
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

bench: tools
	$(CARGO) bench

# For other loads: cargo bench --bench websocket_sockets -- IDLE BUSY SECONDS
bench-sockets: tools
	$(CARGO) bench --bench websocket_sockets

clean:
	$(CARGO) clean

# Pingora compiles zlib-ng, which needs cmake, and ring, which needs a C compiler.
tools:
	@sh .ci/tools
