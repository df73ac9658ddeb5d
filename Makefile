# make demo   set up, then run the main job: phantom cohort to report
# make docs   set up, then run the gallery and build the site: build/site/index.html
# make types   set up, then check the types
# make test   set up, then run all tests (TESTS=tests/explain: some; VENV=.venv-other PYTHON=python3.13: elsewhere)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
TESTS ?= tests
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
# Where there is no NVIDIA driver, PyTorch's own index gives its CPU build in place of the far larger CUDA build.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test docs lint types clean

demo: $(VENV)/installed
	$(VENV)/bin/datxai

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(TESTS)

docs: $(VENV)/installed
	$(VENV)/bin/python examples/gallery.py
	$(VENV)/bin/mkdocs build --strict

lint: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .

types: $(VENV)/installed
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "datxai needs Python 3.11 or newer; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  $(PIP) install -q --no-deps --retries 0 --timeout 15 --index-url $(TORCH_CPU_INDEX) -c constraints.txt torch torchvision 2>/dev/null \
	  || echo "PyTorch's CPU index is out of reach; going on with the default one."; fi
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
