# Everything sets itself up: .venv with the locked versions, once.
#   make demo    train, merge, evaluate and chat on the toy world (runs/demo); a second call continues
#   make demo QUICK=1   the same steps in three minutes, with weaker numbers (runs/demo_quick)
#   make demo BASE=smolvlm   the same from a base of another family (runs/demo_smolvlm)
#   make ablation   what each strategy brings, on the toy world (runs/ablation): hours; a second call continues
#   make try     ask a small trained model about example images, on a page in the browser
#   make test    the tests, a process for each core (at most four)
#   make lint    ruff and mypy
#   make bench   the performance claims (runs/benchmarks/results.md), about ten minutes on an idle machine
#   make gpu     the same on one CUDA GPU with 80 GB, at most 8 minutes (runs/gpu/gpu.md)
PYTHON ?= python3
BASE ?= llava
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo ablation try test lint bench gpu setup clean

demo: $(READY)
	$(BIN)/python -m utils.toy.demo --base $(BASE) $(if $(filter-out 0,$(QUICK)),--quick)

ablation: $(READY)
	$(BIN)/python -m utils.toy.ablation --jobs 2

try: $(READY)
	@$(BIN)/python chat.py --web --port 0 --open_browser

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

setup: $(READY)

$(READY): requirements.lock tests/requirements-nodeps.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements-nodeps.txt
	touch $@

clean:
	rm -rf $(VENV) runs/demo runs/demo_quick
