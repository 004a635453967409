# Every target does its own set-up. Nothing runs as root but the one package command of `make packages`,
# which asks first (YES=1 says yes in advance).

SHELL := /bin/bash
RELEASE := target/x86_64-unknown-linux-gnu/release
KIMG := target/release/kimg
DEMO := demo
# Always with --workspace: cargo then compiles third-party crates once, not once for each choice of packages.
PROGRAMS := kimg kimg-node kimg-control kimg-stage1 example-web
PART ?=

.PHONY: help build packages up down figures bench check test test-long clean

help:
	@echo 'make up         build both images, boot three VMs, write $(DEMO)/kubeconfig'
	@echo 'make down       end the VMs'
	@echo 'make check      format, lints, unit and table tests: no VM, no root'
	@echo 'make test       everything that fits into CI, with VMs'
	@echo 'make test-long  everything, by parts (PART=name), resumable, into target/long.json'
	@echo 'make figures    sizes, times and memory, into target/figures.json'
	@echo 'make bench      rates and memory of the API server, into target/bench.json'

# Cargo's own lines stay: the first time it takes minutes.
build: packages
	@echo 'kimg and the programs of the images: compiling what has changed'
	@cargo build --release --workspace $(PROGRAMS:%=--bin %)
	@mkdir -p target/release && ln -sfn ../../$(RELEASE)/kimg $(KIMG)

packages:
	@./images/host-packages

up: build
	@test -f $(DEMO)/cluster.toml || $(KIMG) init $(DEMO)
	@$(KIMG) doctor --kubectl >/dev/null || echo 'going on without kubectl' >&2
	@$(KIMG) --dir $(DEMO) up

down:
	@$(KIMG) --dir $(DEMO) down

figures: build
	@cargo build --release --quiet --workspace --bin figures
	@$(RELEASE)/figures

bench: build
	@cargo build --release --quiet --workspace --bin bench
	@$(RELEASE)/bench $(PART)

check:
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --quiet -- -D warnings
	@cargo test --workspace --exclude qemu-tests --quiet
	@cargo test --workspace --test tidy --quiet

test: build
	@cargo build --release --quiet --workspace --bin fetch-tools --bin suite
	@$(RELEASE)/fetch-tools
	@$(RELEASE)/suite fast

test-long: build
	@cargo build --release --quiet --workspace --bin suite
	@$(RELEASE)/suite long $(PART)

clean:
	@cargo clean
