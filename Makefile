.DEFAULT_GOAL := help
PY := .venv/bin/python
PROTOS := $(wildcard proto/volgate/v1/*.proto)
.PHONY: help install demo test test-kernel check soak bench deb proto lab lab-stop clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: ## Install Debian packages and the virtual environment
	@bash deploy/install.sh

demo: install ## Run the main job: a volume, a real guest, a crash, and back
	$(PY) -m tests.demo

test: install ## Run every check, and the tests (a drawn share of what takes long; make soak has all)
	@bash tests/run.sh

test-kernel: install ## Run the part of the tests that needs a kernel of its own, in guests
	$(PY) -m pytest -p tests.wholeness -n 2 --dist loadfile tests/kernel tests/labs/test_lab_kernel.py tests/conformance/test_lvm.py tests/conformance/test_iscsi_files.py tests/conformance/test_iscsi_lvm.py tests/conformance/test_iscsi_inventory.py tests/conformance/test_iscsi_tgt.py

check: install ## Lint, types, import rules, contract
	@bash tests/check.sh

soak: install ## Run every full count and write docs/soak-report.md
	VOLGATE_SOAK=1 $(PY) -m tests.soak

bench: install ## Measure ratios against native calls
	$(PY) -m tests.bench

deb: install ## Build the Debian package into build/deb
	@bash deploy/debian/build.sh

proto: install ## Generate the stubs from proto/
	@bash proto/generate.sh

lab: install ## Start a lab for people: make lab NAME=libvirt (or postgres, ceph, kernel)
	$(PY) -m tests.labs.lab start $(NAME)

lab-stop: install ## Stop it
	$(PY) -m tests.labs.lab stop $(NAME)

clean: ## Remove what the targets made
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache
