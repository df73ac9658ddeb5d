# make demo   set up, then run the main job: phantom cohort to report
# make test   set up, then run all tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP = .venv/bin/python -m pip --disable-pip-version-check
# Where there is no NVIDIA driver, PyTorch's own index gives its CPU build in place of the far larger CUDA build.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test lint clean

demo: .venv/installed
	.venv/bin/datxai

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/python -m pytest

lint: .venv/installed
	.venv/bin/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "datxai needs Python 3.11 or newer; make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  $(PIP) install -q --no-deps --retries 0 --timeout 15 --index-url $(TORCH_CPU_INDEX) -c constraints.txt torch torchvision 2>/dev/null \
	  || echo "PyTorch's CPU index is out of reach; going on with the default one."; fi
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
