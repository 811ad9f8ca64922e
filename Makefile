# What a contributor can do. Everything works with plain cargo too; this also brings in what the build needs.

CARGO ?= cargo
# The demo shows the program as it is built for the tests, so that a newcomer waits for one build of Pingora only: what the
# tests need besides has features of some crates that `cargo run` would build without.
.PHONY: demo test test-long soak test-ecosystem test-monitoring test-helm test-debian picture fuzz build assets deb dist image lint doc dependencies audit bench bench-bridge bench-instructions bench-sockets clean tools

demo: tools
	$(CARGO) test --quiet --no-run --test it
	$${CARGO_TARGET_DIR:-target}/debug/tiergate demo

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
	target/ecosystem/bin/python tests/external/ecosystem.py

# The rules, the dashboard and the metrics; promtool is in Debian's package `prometheus`.
test-monitoring: tools
	$(CARGO) build
	python3 tests/external/promtool.py

# The chart in conf/helm by Helm's own library, which comes from PyPI, to target/ only.
test-helm: tools
	$(CARGO) build
	python3 -m venv target/helm
	target/helm/bin/pip install --quiet helm-python-sdk==0.2.2 pyyaml
	target/helm/bin/python tests/external/helm.py

# Tests the admin page in headless Chromium, and takes the pictures of docs/metrics.md.
picture: tools
	$(CARGO) build
	python3 tests/external/page.py

# As root: in a Debian that boots in a container, from debootstrap; lintian and openssl are needed too.
test-debian: deb
	python3 tests/external/debian.py

# Each target a short while, with a stable compiler. A long run: TARGETS=rewriter RUNS=10000000 make fuzz
# Inputs that reach something new are kept in fuzz/corpus, those that fail in fuzz/artifacts.
RUNS ?= 2000
TARGETS ?= $(sort $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs))))
fuzz: tools
	cd fuzz && $(CARGO) build --release
	cd fuzz && for target in $(TARGETS); do \
	    mkdir -p corpus/$$target artifacts/$$target && echo "$$target, $(RUNS) runs" && \
	    $(CARGO) run --release --quiet --bin $$target -- -runs=$(RUNS) -verbosity=0 -max_len=2048 -timeout=60 \
	        -dict=dictionaries/$$target.dict -artifact_prefix=artifacts/$$target/ corpus/$$target seeds/$$target \
	        || exit 1; \
	done

build: tools
	$(CARGO) build --release

# Completions and manual pages, which the program writes, to target/assets.
assets: build
	mkdir -p target/assets/man target/assets/completions
	$${CARGO_TARGET_DIR:-target}/release/tiergate man --dir target/assets/man
	$${CARGO_TARGET_DIR:-target}/release/tiergate completions bash > target/assets/completions/tiergate.bash
	$${CARGO_TARGET_DIR:-target}/release/tiergate completions zsh > target/assets/completions/_tiergate
	$${CARGO_TARGET_DIR:-target}/release/tiergate completions fish > target/assets/completions/tiergate.fish

# target/debian/tiergate_*.deb
deb: assets
	command -v cargo-deb >/dev/null || $(CARGO) install --locked cargo-deb
	$(CARGO) deb --no-build --strip

# A static, stripped binary with its completions, pages, unit and samples as a tarball, its checksum, and the list of what it is
# made of (CycloneDX), to target/dist. DIST_TARGET=x86_64-unknown-linux-gnu makes one that needs the C library of the machine.
DIST_TARGET ?= x86_64-unknown-linux-musl
DIST_PROFILE ?= release
dist: tools
	@case $(DIST_TARGET) in *-musl) command -v musl-gcc >/dev/null || sh .ci/tools musl-tools ;; esac
	rustup target add $(DIST_TARGET)
	$(CARGO) build --locked --profile $(DIST_PROFILE) --target $(DIST_TARGET)
	command -v cargo-cyclonedx >/dev/null || $(CARGO) install --quiet --locked --root target/audit cargo-cyclonedx@0.5.9
	PATH="$(CURDIR)/target/audit/bin:$$PATH" sh .ci/dist $(DIST_TARGET) $(DIST_PROFILE)

# The image of the Containerfile, by whichever program is here. OCI's own format has no health check.
image:
	@for program in buildah podman; do \
	    command -v $$program >/dev/null && exec $$program build --format docker --file Containerfile --tag tiergate .; \
	done; exec docker build --file Containerfile --tag tiergate .

lint: tools
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	cd fuzz && $(CARGO) fmt --check

# The documentation of the code, without a link that leads nowhere.
doc: tools
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --no-deps --document-private-items

# Dependencies: none that is not used, and licences, bans and sources as in deny.toml. The first run builds both tools, which
# takes some minutes, to target/tools only; later ones need no network.
DENY = cargo-deny@0.20.2
dependencies: tools
	@sh .ci/tools $(DENY) cargo-machete@0.9.2
	target/tools/bin/cargo-machete
	$(CARGO) fetch --quiet --locked
	target/tools/bin/cargo-deny --offline check licenses bans sources

# The same and known vulnerabilities, by the newest list, for which it needs the network.
audit: tools
	@sh .ci/tools $(DENY)
	target/tools/bin/cargo-deny check

bench: tools
	$(CARGO) bench --bench request --bench growth --bench stream_sockets --bench websocket_sockets --bench service_tier --bench usage \
		--bench stream --bench report

# ACCEPT=--accept takes the figures of today for those to come.
ACCEPT ?=
bench-instructions:
	@sh .ci/tools valgrind
	$(CARGO) bench --profile counted --bench instructions -- $(ACCEPT)

# CPU of the bridge, beside a relayed request, and beside LiteLLM's conversion where LITELLM=program is given.
LITELLM ?=
bench-bridge: build
	python3 tests/external/bridge_cost.py $${CARGO_TARGET_DIR:-target}/release/tiergate $(LITELLM)

# For other loads: cargo bench --bench websocket_sockets -- IDLE BUSY SECONDS
bench-sockets: tools
	$(CARGO) bench --bench websocket_sockets

clean:
	$(CARGO) clean
	cd fuzz && $(CARGO) clean

# Pingora compiles zlib-ng, which needs cmake, and ring, which needs a C compiler.
tools:
	@sh .ci/tools
