# make demo    everything, on this machine's CPU        make test    the tests
# make lint    what the code must pass                  make lock    resolve the lock anew
# make schemas export the models again              make clean    remove what the targets made
# make fetch CONFIG=config/mine.yaml    the data sets of the matrix, where there is internet
# make doctor CONFIG=config/mine.yaml SLURM=1    what is wrong, before a matrix is paid for; with
#                   SLURM=1 on a cluster's nodes, by a short job
# make plan CONFIG=config/mine.yaml     what the matrix costs: jobs, node-hours and GPU-hours
# make status CONFIG=config/mine.yaml WATCH=1   the matrix as a grid, once or until interrupted;
#                   CHECK=1 fails unless every cell has a good result
# make rerun METRICS=results/.../metrics.json       run that cell again and compare
# make test-slurm   the tests on a real Slurm cluster, brought up here for them (Debian, root)
# make test-slurm-long  eight strategies, three GPU counts, two seeds on it, and what Slurm takes
#                   minutes for (about half an hour)
#
# make test-gpu     the tests that start ranks, over NCCL on two GPUs of this machine
# make bench GPUS="1 2" ROUNDS=3   each strategy's cell beside a plain loop of its framework
#
#   PYTHON=python3.12   the interpreter (3.11 or newer)     VENV=.venv   where to install
#   TORCH=site          keep the torch and torchvision that this interpreter already has

PYTHON ?= python3
VENV ?= .venv
TORCH ?= lock

ifeq ($(TORCH),site)
LOCK := requirements-site.txt
VENV_FLAGS := --system-site-packages
else ifeq ($(TORCH),lock)
LOCK := requirements.txt
VENV_FLAGS :=
else
$(error TORCH=$(TORCH): it is lock (the locked torch) or site (the interpreter's own))
endif

# Without byte code every process of every cell would compile torch's sources anew.
unexport PYTHONDONTWRITEBYTECODE
# DeepSpeed is built from source; its CUDA ops are not needed, and would need a compiler.
export DS_BUILD_OPS := 0

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

# Named after what is installed, and written last: another lock, or an interrupted installation, is
# installed afresh; otherwise there is nothing to do.
LOCKED := $(shell cat $(LOCK) requirements-bootstrap.txt | cksum | tr ' ' '-')
READY := $(VENV)/.shardmark-$(TORCH)-$(LOCKED)

.PHONY: demo test test-gpu bench test-slurm test-slurm-long lint lock schemas fetch doctor plan status rerun clean

demo: $(READY)
	@snakemake --profile profiles/local --configfile config/demo.yaml
	@cat results/demo/tables/summary.txt
	@echo "report: results/demo/report.html"

# Many tests wait for processes of their own, and leave a core idle.
test: $(READY)
	@python -m pytest -n 2 --dist loadfile

# The last one alone: it asks what a failed cell leaves on the GPUs.
ON_GPUS = tests/test_parity.py tests/test_certificate.py tests/test_communication_volume.py
test-gpu: export SHARDMARK_TEST_DEVICE := cuda
test-gpu: $(READY)
	@python -m pytest -n 8 $(ON_GPUS)
	@python -m pytest tests/test_one_rank_fails.py

bench: $(READY)
	@PYTHONPATH=workflow/scripts python benchmarks/against_plain_loops.py \
	  $(if $(GPUS),--gpus $(GPUS)) $(if $(ROUNDS),--rounds $(ROUNDS))

# In namespaces of their own the cluster meets no Slurm of this machine's, and nothing of it is left.
ON_CLUSTER = SHARDMARK_PRIVATE_NAMESPACES=1 \
  unshare --mount --net --pid --fork --kill-child --mount-proc sh -c '"$$@"; exit $$?' sh

test-slurm: $(READY)
	@sh tests/slurm/install.sh
	@$(ON_CLUSTER) python -m pytest tests/slurm

test-slurm-long: $(READY)
	@sh tests/slurm/install.sh
	@$(ON_CLUSTER) python -m pytest tests/slurm -m long -s

lint: $(READY)
	@ruff check .
	@ruff format --check .
	@mypy
	@snakefmt --check Snakefile workflow/rules
	@python tests/snakemake_lint.py

lock: $(READY)
	@uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet -o requirements.txt
	@echo uv | uv pip compile - --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet -o requirements-bootstrap.txt
	@awk -f tests/without_torch.awk requirements.txt > requirements-site.txt

schemas: $(READY)
	@python workflow/scripts/export_schemas.py

# An overlay of the configuration, for the targets that look at a matrix.
OVERLAY = $(if $(CONFIG),--configfile $(CONFIG))

fetch: $(READY)
	@snakemake fetch --profile profiles/local $(OVERLAY)

doctor: $(READY)
	@python workflow/scripts/doctor.py $(OVERLAY) $(if $(SLURM),--slurm)

plan: $(READY)
	@python workflow/scripts/plan.py $(OVERLAY)

status: $(READY)
	@python workflow/scripts/status.py $(OVERLAY) $(if $(WATCH),--watch) $(if $(CHECK),--check)

rerun: $(READY)
	@test -n "$(METRICS)" || \
	  { echo "shardmark: name the cell with make rerun METRICS=results/.../metrics.json" >&2; exit 1; }
	@python workflow/scripts/rerun.py $(METRICS)

clean:
	@if [ -e $(VENV)/.shardmark ]; then rm -rf $(VENV); fi
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .snakemake results/demo
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Only an environment that this rule made is ever emptied.
$(READY):
	@command -v $(PYTHON) > /dev/null || \
	  { echo "shardmark: there is no $(PYTHON) here; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "shardmark: needs Python 3.11 or newer, and $(PYTHON) is" \
	    "$$($(PYTHON) -c 'import platform; print(platform.python_version())');" \
	    "name another with make PYTHON=..." >&2; exit 1; }
	@if [ -e $(VENV) ] && [ ! -e $(VENV)/.shardmark ]; then \
	  echo "shardmark: $(VENV) is there and make did not create it; name another place with" \
	    "make VENV=..." >&2; exit 1; fi
	@echo "installing into $(VENV) from $(LOCK)"
	@rm -rf $(VENV) && mkdir -p $(VENV) && touch $(VENV)/.shardmark
	@$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-bootstrap.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps \
	  --compile-bytecode -r $(LOCK)
	@$(BIN)/python -c 'import torch, torchvision' || \
	  { echo "shardmark: torch and torchvision do not import (the last line above says why)" >&2; \
	    exit 1; }
	@touch $@
