# make demo, make test: from a bare checkout; the second call does not install again.
# Needs Python 3.11 or newer with venv. PYTHON=... picks another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LINKS := build/mypy

.PHONY: demo test lint wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/python -m lvtp_fx.demo --out out/demo.png

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

# mypy knows nothing of setuptools' package-dir: it gets the package as it is installed, out of links.
lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	rm -rf $(LINKS) && mkdir -p $(LINKS)/lvtp_fx
	ln -s $(CURDIR)/lvtp_fx/* $(CURDIR)/passes $(CURDIR)/models $(LINKS)/lvtp_fx
	cd $(LINKS) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p lvtp_fx

wheel: $(VENV)/dev.stamp
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install -e '.[demo]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@ $(VENV)/demo.stamp

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lvtp_fx needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
