# Everything sets itself up: .venv with the locked versions, once.
#   make demo    train, merge, evaluate and chat on the toy world (runs/demo); a second call continues
#   make demo QUICK=1   the same steps in three minutes, with weaker numbers (runs/demo_quick)
#   make demo BASE=smolvlm   the same from a base of another family (runs/demo_smolvlm)
#   make ablation   what each strategy brings, on the toy world (runs/ablation): hours; a second call continues
#   make try     ask a small trained model about example images, on a page in the browser
#   make test    the tests, a process for each core (at most four)
#   make test-lowest, make test-newest   the same with the lowest and the newest versions that requirements.txt allows,
#                each in an environment of its own (.venv-lowest, .venv-newest)
#   make lint    ruff and mypy
#   make bench   the performance claims (runs/benchmarks/results.md), about ten minutes on an idle machine
#   make gpu     the same on one CUDA GPU with 80 GB, at most 8 minutes (runs/gpu/gpu.md)
#   make demo TORCH=cpu   the same with PyTorch's build without CUDA: .venv takes 2.5 GB instead of 7. Counts when .venv is
#                made, for every goal; TORCH_INDEX=URL names another index of such builds
PYTHON ?= python3
BASE ?= llava
ifdef TORCH_INDEX
TORCH ?= cpu
else ifdef TORCH
TORCH_INDEX := https://download.pytorch.org/whl/$(TORCH)
endif
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
PYTEST ?= -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: demo ablation try test test-lowest test-newest lint bench gpu setup clean

demo: $(READY)
	$(BIN)/python -m utils.toy.demo --base $(BASE) $(if $(filter-out 0,$(QUICK)),--quick)

ablation: $(READY)
	$(BIN)/python -m utils.toy.ablation --jobs 2

try: $(READY)
	@$(BIN)/python chat.py --web --port 0 --open_browser

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

test-lowest test-newest: test-%: .venv-%/ready
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest $(PYTEST)

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
	$(if $(TORCH),$(TORCH_FROM_INDEX))
	$(BIN)/python $(PIP) -r requirements.lock
	$(BIN)/python $(PIP) --no-deps -r tests/requirements-nodeps.txt
	touch $@

# First, and with the name of the build in the version: another index has the build with CUDA under the same number.
TORCH_PINS = $(shell grep -E '^torch(vision)?==' requirements.lock | sed 's/$$/+$(TORCH)/')
define TORCH_FROM_INDEX
@$(BIN)/python $(PIP) --retries 1 --no-deps --index-url $(TORCH_INDEX) $(TORCH_PINS) || { \
	echo "TORCH_INDEX=$(TORCH_INDEX) does not answer, or does not have $(TORCH_PINS) for this Python; name another" \
	"index, or leave TORCH and TORCH_INDEX out: then the build with CUDA is installed, 7 GB instead of 2.5" >&2; exit 2; }
endef

.venv-%/ready: requirements.txt tests/requirements.txt tests/requirements-nodeps.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python $(PIP) uv
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python -r requirements.txt -r tests/requirements.txt \
	  --resolution $(if $(filter lowest,$*),lowest-direct,highest)
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --no-deps -r tests/requirements-nodeps.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest runs/demo runs/demo_quick
