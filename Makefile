# The two commands of the README are `make demo` and `make test`; the others are for maintainers.
# They need Python 3.11+, git and make.  Everything they make lies in .venv, and in
# ~/.cache/portretry-udev where real OctoPrints are kept for `make test-octoprint`.
VENV ?= .venv
PYTEST = $(VENV)/bin/pytest

.PHONY: demo test lint coverage mutants fuzz test-octoprint test-system test-vm benchmark manual deb clean

demo: $(VENV)/.demo
	@$(VENV)/bin/portretry-udev demo $(if $(OCTOPRINT),--octoprint $(OCTOPRINT))

# Most of these wait more than they work, so several files at once take half the time.  Those that hold the
# service to a second come by themselves: beside others they would measure the machine.
SLOW = octoprint or system or vm
test: $(VENV)/.test
	@$(PYTEST) -n 3 --dist loadfile -m 'not (alone or $(SLOW))'
	@$(PYTEST) -m 'alone and not ($(SLOW))'

# Style, types, and dead or doubled code.
lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The rules and the firmware's words: every branch is taken by their own tests.
coverage: $(VENV)/.test
	$(PYTEST) -q -n 2 tests/test_rules*.py tests/test_firmware.py \
	    --cov=portretry_udev.rules --cov=portretry_udev.events --cov=portretry_udev.firmware --cov-branch \
	    --cov-report=term-missing --cov-fail-under=100

# Breaks the rules one by one; every break must be noticed by a test.
mutants: $(VENV)/.test
	$(VENV)/bin/python tests/mutants.py

# Foreign data into the parsers, mutated from real samples; always the same cases.
CASES ?= 20000
fuzz: $(VENV)/.test
	$(VENV)/bin/python tests/fuzz.py --cases $(CASES)

# Real OctoPrints, side by side, each twice: what only asks, and the rest.  Installed into a cache on first
# use; some seven minutes.
OCTOPRINTS ?= 1.10.3 1.11.8 2.0.0rc7
test-octoprint: $(VENV)/.test
	@for version in $(OCTOPRINTS); do printf '%s\n' "$$version and polls" "$$version and not polls"; done | \
	    xargs -P 6 -I WHICH $(PYTEST) -q -m octoprint -k WHICH tests/octoprint

# Real udevd, kernel uevents, umockdev: root, and `apt install udev umockdev`.
test-system: $(VENV)/.test
	$(PYTEST) -m system tests/system

# A stock kernel in QEMU, USB boards plugged and pulled; root for the first build, see tests/vm/README.md.
# Two machines side by side, each of which has one processor.
test-vm: $(VENV)/.test
	$(PYTEST) -m vm -n 2 --dist loadfile tests/vm

benchmark: $(VENV)/.test
	$(VENV)/bin/python benchmarks/recovery.py
	$(VENV)/bin/python benchmarks/farm.py

# docs/commands.md and the man page, from the commands' own help and tools/manual.md.
manual: $(VENV)/.test
	@$(VENV)/bin/python tools/manual.py

# A Debian package in dist, of Debian's own libraries; what builds it: sudo apt build-dep ./
deb:
	@tools/make-deb dist

clean:
	rm -rf $(VENV) dist

$(VENV)/.demo: pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) && touch $@

$(VENV)/.test: pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) test && touch $@ $(VENV)/.demo

$(VENV)/.lint: pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) test,lint && touch $@ $(VENV)/.test $(VENV)/.demo
