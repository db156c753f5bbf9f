# make demo, make test: from a bare checkout; the second call does not install again.
# Needs Python 3.11 or newer with venv. PYTHON=... picks another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LINKS := build/mypy
TORCH := 2.11 2.13 2.15
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

.PHONY: demo test test-matrix lint wheel bench-gpu clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/python -m lvtp_fx.demo --out out/demo.png

test: $(VENV)/dev.stamp
	$(BIN)/python $(PYTEST)

# The suite on each of the torch releases of TORCH, each in an environment of its own. --keep-going: a release that fails
# does not keep the others from running.
test-matrix:
	$(MAKE) --keep-going $(TORCH:%=test-torch-%)

test-torch-%: $(VENV)-torch-%/bin/pip
	$(<D)/python -m pip install 'torch==$*.*' -e '.[test]'
	$(<D)/python $(PYTEST)

# What only a GPU can show, in one command: its tests, latency of the graphs as they are deployed, then with CUDA graphs,
# rivals, growth, and the forms of an attention whose keys count for several tokens.
GPU_MODELS := --model vit_base_patch16_224 --model vit_large_patch16_224 --model vit_base_patch16_dinov3
GPU := --device cuda --dtype bfloat16 --size 512 --size 1024 --flops-cut 0.35 --flops-cut 0.5
bench-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -k "cuda or gpu" -rs
	$(BIN)/python bench/latency.py $(GPU_MODELS) $(GPU) --batch 1 --batch 8 --batch 32 --parts --out out/latency_gpu.md
	$(BIN)/python bench/latency.py $(GPU_MODELS) $(GPU) --batch 1 --mode reduce-overhead --out out/latency_gpu_graphs.md
	$(BIN)/python bench/latency.py --device cuda --dtype bfloat16 --strategy all --batch 8 --out out/latency_gpu_rivals.md
	$(BIN)/python bench/scaling.py --device cuda --out out/scaling_gpu.md
	$(BIN)/python bench/key_weights.py --device cuda --dtype bfloat16 --batch 8 --out out/key_weights_gpu.md

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
	rm -rf $(VENV) $(VENV)-torch-* build dist out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install -e '.[demo]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@ $(VENV)/demo.stamp

# .venv, and .venv-torch-RELEASE
.PRECIOUS: %/bin/pip
%/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lvtp_fx needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $*
