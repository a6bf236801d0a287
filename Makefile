# make setup   the environment in .venv          make demo   screen a phantom cohort
# make lint    ruff, its formatter and mypy      make test   the tests
# make faults  runs that are killed, starved and cut off, on purpose (10 minutes)
# make clean   remove environment and demo
#
# torch comes first and alone. All else is pinned and installed with --no-deps: PyPI's torchvision and its like are CUDA
# builds, and beside a CPU torch they break `import transformers`. For the CPU build of torch from PyTorch's own index:
#     make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
export PREFECT_LOGGING_LEVEL ?= WARNING

.PHONY: setup demo lint test faults clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml requirements-cpu.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "medad needs Python 3.11 or newer; name one with make setup PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@# uv takes half a minute where pip takes five; where uv cannot be had, pip does it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
	  && $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-cpu.lock \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-cpu.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/medad phantom $(DEMO)/phantoms --cases 8 --seed 1
	$(BIN)/medad screen $(DEMO)/phantoms --out $(DEMO)/run --config configs/demo.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	$(BIN)/python -m pytest --ignore=tests/faults

faults: setup
	$(BIN)/python -m pytest tests/faults

clean:
	rm -rf $(VENV) $(DEMO)
