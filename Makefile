# make demo: set up, watch a small Wide ResNet learn, and classify two photographs.   make test: set up and check everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check results clean

demo: $(READY)
	$(BIN)/wrn train WRN-10-1 --data digits --recipe quick --out runs/demo --overwrite
	@echo "Two photographs of scikit-learn's, by a network that comes with the package. They show none of its ten classes:"
	@$(BIN)/wrn predict $$($(BIN)/python -c "import sklearn.datasets as d; print(d.__path__[0])")/images/*.jpg

# The tests start hundreds of processes: byte code is kept, whatever the environment says.
test: $(READY) check
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# the tables of README and docs/, from the records in results/, and the model cards
results: $(READY)
	$(BIN)/python tools/results.py
	$(BIN)/python tools/speed.py
	$(BIN)/python tools/reliability.py
	$(BIN)/python tools/scaling.py
	$(BIN)/python tools/pretrained.py
	$(BIN)/python tools/the_paper.py
	$(BIN)/python tools/detection.py

clean:
	rm -rf $(VENV) runs/demo

# Made again only when pyproject.toml changes. A pip from before 25.1 does not know --group, so pip itself comes first.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}; use: make PYTHON=python3.12")'
	@echo "Setting up $(VENV): a few minutes and several GB, once (most of it is PyTorch)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $(READY)
