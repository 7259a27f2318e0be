# `make demo` and `make test` do all set-up. PYTHON picks the interpreter (3.11 to 3.13), EXTRAS the optional packages,
# TORCH_BACKEND the build of torch where uv is there: cpu, or what uv names, for example auto or cu130.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXTRAS ?= dev
TORCH_BACKEND ?= cpu
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTHONS ?= 3.11 3.12 3.13

.PHONY: setup demo test test-slow test-light test-pythons lint bench compatibility drill study clean

setup: $(VENV)/.installed-$(EXTRAS)

# Torch first. uv, where it is there, knows where CPU builds are (--torch-backend). pip takes the build that its index
# offers under the version in constraints.txt: on PyPI, for Linux on x86-64, a CUDA build of several GB, which runs on a
# CPU as well. Careful: uv does not read pip's configuration, so it may fail where pip does not.
$(VENV)/.installed-$(EXTRAS): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@if command -v uv > /dev/null; then \
		uv pip install --quiet --python $(BIN)/python --torch-backend=$(TORCH_BACKEND) -c constraints.txt torch || \
		echo "uv could not install torch (its reason is above): pip takes the build that its own index offers"; fi
	$(PIP) -e '.[$(EXTRAS)]'
	touch $@

demo: setup
	$(BIN)/onepolicy demo

# one thread per process: two busy threads on two busy cores collapse (LOG.md, 2026-11-20)
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

# The test files that need no torch (tests/light.txt), in an environment without it: small and quick to set up.
LIGHT_VENV := $(VENV)-light
LIGHT_BIN := $(LIGHT_VENV)/bin
test-light: $(LIGHT_VENV)/.installed
	$(LIGHT_BIN)/python -m pytest -q -n 2 --dist loadgroup $$(grep -v '^#' tests/light.txt)

$(LIGHT_VENV)/.installed: pyproject.toml constraints.txt tests/light_requirements.py
	$(PYTHON) -m venv $(LIGHT_VENV)
	$(LIGHT_BIN)/python tests/light_requirements.py > $(LIGHT_VENV)/requirements.txt
	$(PIP:$(BIN)%=$(LIGHT_BIN)%) -r $(LIGHT_VENV)/requirements.txt
	$(PIP:$(BIN)%=$(LIGHT_BIN)%) --no-deps -e .
	touch $@

# the whole suite under every supported Python; one that is not there is named
test-pythons:
	tests/pythons.sh test $(PYTHONS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/teachers.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/sandbox.py

# writes docs/compatibility.md; one row: python -m benchmarks.compatibility --only qwen3
compatibility: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.compatibility

# what goes wrong around a run, tried out: minutes; ends with status 1 when a case does not hold
drill: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.drill

# hours on two cores; finished runs are never run again
study: setup
	for name in tune_clash tune_apart tune_coevolve clash apart coevolve real; do $(BIN)/onepolicy compare studies/$$name.yaml || exit 1; done
	$(BIN)/python studies/rows.py runs > docs/results.md

clean:
	rm -rf $(VENV) .venv-* .pytest_cache .ruff_cache .mypy_cache build *.egg-info
