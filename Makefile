# Each target does its own set-up: .venv is made once, and packages are installed again only when a list changed.
PYTHON ?= python3
RUN ?= demo_run
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo teachers test bench lint real screenshots clean

help:
	@echo "make demo   the whole job on a synthetic cohort, into $(RUN)/ (a few minutes)"
	@echo "make test   the test suite"
	@echo "make teachers  install nnU-Net and TotalSegmentator, so that their models can teach (about 2 minutes)"
	@echo "make bench  speed of training and segmenting, and of the Slicer module; PARTS=\"ct growth\" for some of it"
	@echo "make lint   style"
	@echo "make real   the results of docs/results.md, on the public data in ../shared/data or KT_DATA"
	@echo "make screenshots  the pictures of the Slicer module in Resources/Screenshots"
	@echo "make clean  remove .venv and what tests and demos left"

demo: $(INSTALLED)
	$(BIN)/python -m KnowledgeTransferLib demo "$(RUN)"

# One after the other: Qt and Slicer's libraries change their process (its locale, its modules) for what follows.
test: $(INSTALLED)
	$(BIN)/python -m pytest Testing/Library
	$(BIN)/python -m pytest Testing/Slicer

# They pull in torchvision, which is built for CUDA; beside a torch for the CPU it cannot be imported, and is removed.
teachers: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[teachers]'
	$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/pip uninstall --quiet --yes torchvision

bench: $(INSTALLED)
	$(BIN)/python Testing/Benchmarks/run.py $(PARTS)
	test -n "$(PARTS)" || $(BIN)/python Testing/Benchmarks/panel.py

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

real: $(INSTALLED)
	$(BIN)/python Testing/Benchmarks/real.py $(PARTS)

screenshots: $(INSTALLED)
	$(BIN)/python Testing/Slicer/screenshots.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache demo_run bench_runs real_runs
	find KnowledgeTransfer KnowledgeTransferLib Testing -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml KnowledgeTransferLib/requirements.txt constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No $(PYTHON) found. Install Python 3.10 or newer, or name it: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "$(PYTHON) has no venv module. On Debian and Ubuntu: sudo apt-get install python3-venv"; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
