# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Every target does its own set-up on a fresh Debian 12 machine, whose PID 1 need not be systemd; as root:
#
#   make demo     build the packages, boot a throw-away container, install them there, run a real job
#   make check    all tests: lint, types, unit, system (Debian 12 and 13), browser, VM
#
#   make deb      build the packages into dist/
#   make install  build them and install them on this machine
#   make shell    a shell in a container that has bgtaskd    (RELEASE=13 AS=alice)
#   make bench    measure, in a container; `make bench-peers`: beside Celery, RQ, Huey, Dramatiq, gearmand
#   make lint | types | unit | system | browser | vm         (TESTS="tests/system/test_x.py -k name")
#   make clean    remove what was built here; `make clean-cache` the cached roots, images and packages too

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

RELEASE ?= 12
AS ?= root
export PYTHONDONTWRITEBYTECODE := 1
export DEBIAN_FRONTEND := noninteractive

SYSTEM_PYTHON := /usr/bin/python3
PYTHON := .venv/bin/python
HOUSES := $(SYSTEM_PYTHON) -m tests.houses
step = @printf '%(%T)T %s\n' -1 "$(1)" >&2

# To build the packages; to boot the test houses; to run bgtaskd's own tests outside of them.
TOOLS := build-essential debhelper dh-python lintian pybuild-plugin-pyproject python3-all \
    python3-setuptools python3-wheel \
    e2fsprogs mmdebstrap qemu-system-x86 qemu-utils systemd-container util-linux \
    dbus python3-dbus-next python3-pystemd python3-sdnotify python3-venv python3-yaml

SOURCES := $(shell find . \( -name .git -o -name .venv -o -name '.*_cache' -o -name __pycache__ \
    -o -path ./build -o -path ./dist -o -path ./tests -o -path ./.hypothesis \) -prune -o -type f -print)

.PHONY: check
check: setup deb lint types
	$(call step,all tests)
	$(PYTHON) -m pytest --durations=10 tests/unit tests/system tests/browser tests/vm

.PHONY: demo
demo: packages deb
	$(SYSTEM_PYTHON) -m tests.demo

.PHONY: shell
shell: packages deb
	$(HOUSES) shell --release $(RELEASE) --user $(AS)

.PHONY: bench
bench: packages deb
	$(HOUSES) run --release $(RELEASE) python3 /srv/bgtaskd/tests/bench/run.py

# Those that Debian does not package come from PyPI.
.PHONY: bench-peers
bench-peers: setup packages deb
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
	    --target build/peers dramatiq huey gear
	$(HOUSES) run --peers --release 12 python3 /srv/bgtaskd/tests/bench/peers.py

.PHONY: install
install: packages deb
	apt-get install --yes ./dist/*.deb

# --- set-up ------------------------------------------------------------------------------------------

.PHONY: setup
setup: packages .venv/.done

.PHONY: packages
packages:
	@test "$$(id -u)" = 0 || { echo "make: run this as root (sudo make …)" >&2; exit 1; }
	@installed() { dpkg-query --show --showformat '$${db:Status-Status}\n' $(TOOLS) 2>/dev/null; }; \
	if [ "$$(installed | grep -cx installed)" != $(words $(TOOLS)) ]; then \
	    printf '%(%T)T installing the tools\n' -1 >&2; \
	    apt-get update --quiet=2; \
	    apt-get install --yes --quiet=2 --no-install-recommends $(TOOLS) >/dev/null; \
	fi

.venv/.done: tests/requirements.txt | packages
	$(call step,making .venv)
	rm -rf .venv
	$(SYSTEM_PYTHON) -m venv --system-site-packages .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	touch $@

# --- packages ----------------------------------------------------------------------------------------

.PHONY: deb
deb: packages dist/.done

# In a copy, so that the checkout stays as it was; one at a time, for those who share a checkout.
dist/.done: $(SOURCES)
	$(call step,building the packages)
	@exec 9<Makefile; flock 9; \
	rm -rf build/deb; mkdir -p build/deb/source; \
	tar --create --exclude-vcs --exclude=./build --exclude=./dist --exclude=./.venv \
	    --exclude='.*_cache' --exclude=__pycache__ . | tar --extract --directory build/deb/source; \
	(cd build/deb/source && dpkg-buildpackage --unsigned-source --unsigned-changes --build=binary) \
	    >build/deb/log 2>&1 || { cat build/deb/log >&2; exit 1; }; \
	rm -rf dist; mkdir dist; \
	mv build/deb/*.{deb,changes,buildinfo} dist/; \
	touch $@
	$(call step,built $$(cd dist && echo *.deb))

# --- tests -------------------------------------------------------------------------------------------

.PHONY: lint
lint: setup
	$(call step,lint)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.PHONY: types
types: setup
	$(call step,types)
	.venv/bin/mypy --strict bgtaskd tests

.PHONY: unit
unit: setup
	$(PYTHON) -m pytest $(or $(TESTS),tests/unit)

.PHONY: system
system: setup deb
	$(PYTHON) -m pytest $(or $(TESTS),tests/system)

.PHONY: browser
browser: setup deb
	$(PYTHON) -m pytest $(or $(TESTS),tests/browser)

# The pictures in docs/: look at them before you commit them.
.PHONY: screenshots
screenshots: packages deb
	$(SYSTEM_PYTHON) -m tests.browser

.PHONY: vm
vm: setup deb
	$(PYTHON) -m pytest $(or $(TESTS),tests/vm)

# --- leftovers ---------------------------------------------------------------------------------------

.PHONY: clean
clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: clean-cache
clean-cache: clean
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/bgtaskd"
