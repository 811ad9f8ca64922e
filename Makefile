# What a contributor can do. Everything works with plain cargo too; this also brings in what the build needs.

CARGO ?= cargo
# The demo shows the same build that the tests use, so that a newcomer waits for one build only.
.PHONY: demo test build lint bench clean tools

demo: tools
	$(CARGO) run --quiet -- demo

test: tools
	$(CARGO) test

build: tools
	$(CARGO) build --release

lint: tools
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

bench: tools
	$(CARGO) bench

clean:
	$(CARGO) clean

# Pingora compiles zlib-ng, which needs cmake, and ring, which needs a C compiler.
tools:
	@sh .ci/tools
