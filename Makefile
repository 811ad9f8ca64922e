# What a contributor can do. Everything works with plain cargo too; this also brings in what the build needs.

CARGO ?= cargo
# The demo shows the same build that the tests use, so that a newcomer waits for one build only.
.PHONY: demo test test-long soak test-ecosystem build lint bench bench-sockets clean tools

demo: tools
	$(CARGO) run --quiet -- demo

test: tools
	$(CARGO) test

# Three minutes of faults by new seeds, and three of steady load. A failure prints its seed: TIERGATE_SEED=n makes it the only one.
test-long: tools
	TIERGATE_SECONDS=180 $(CARGO) test --test faults new_seed -- --nocapture
	TIERGATE_SOAK_MINUTES=3 $(CARGO) test --test faults leaves_nothing_behind -- --nocapture

# A steady load for MINUTES, drawn into target/soak.svg. TIERGATE_PROGRAM=path takes another binary than that of the tests.
MINUTES ?= 20
soak: tools
	TIERGATE_SOAK_MINUTES=$(MINUTES) TIERGATE_SOAK_SVG=$(CURDIR)/target/soak.svg \
		$(CARGO) test --test faults leaves_nothing_behind -- --nocapture

# The examples in conf/ for databases, on a log that the proxy writes. Their programs come from PyPI, to target/ only.
# FLUENT_BIT=program has that shipper tried as well.
test-ecosystem: tools
	$(CARGO) build
	python3 -m venv target/ecosystem
	target/ecosystem/bin/pip install --quiet chdb==4.4.0 duckdb==2.0.0
	target/ecosystem/bin/python tests/ecosystem.py

build: tools
	$(CARGO) build --release

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
