# make demo    everything, on this machine's CPU        make test    the tests
# make lint    what the code must pass                  make lock    resolve the lock anew
# make schemas export the models again              make clean    remove what the targets made
# make fetch CONFIG=config/mine.yaml    the data sets of the matrix, where there is internet
# make doctor CONFIG=config/mine.yaml SLURM=1    what is wrong, before a matrix is paid for; with
#                   SLURM=1 on a cluster's nodes, by a short job
# make plan CONFIG=config/mine.yaml     what the matrix costs: jobs, node-hours and GPU-hours; two
#                   overlays: CONFIG="config/eight_gpus.yaml config/four_gpus.yaml"
# make status CONFIG=config/mine.yaml WATCH=1   the matrix as a grid, once or until interrupted;
#                   CHECK=1 fails unless every cell has a good result
# make rerun METRICS=results/.../metrics.json       run that cell again and compare; YES=1 agrees to
#                   the set-up, variables and image that the file names, which it shows
# make test-all     all tests, also the slow ones, which make test leaves out
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

# Values reach the recipes through the environment and as they were given. Pasted into a recipe's
# text, they would be read as shell.
GIVEN := PYTHON VENV TORCH CONFIG METRICS SLURM WATCH CHECK YES GPUS ROUNDS
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# Without byte code every process of every cell would compile torch's sources anew.
unexport PYTHONDONTWRITEBYTECODE
# DeepSpeed is built from source; its CUDA ops are not needed, and would need a compiler.
export DS_BUILD_OPS := 0
export PATH := $(if $(filter /%,$(firstword $(VENV))),$(VENV),$(CURDIR)/$(VENV))/bin:$(PATH)

.PHONY: demo test test-all test-gpu bench test-slurm test-slurm-long lint lock schemas fetch doctor \
  plan status rerun clean installed

installed:
	@workflow/environment.sh install

demo: installed
	@snakemake --profile profiles/local --configfile config/demo.yaml
	@cat results/demo/tables/summary.txt
	@echo "report: results/demo/report.html"

PYTEST = python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: installed
	@$(PYTEST)

test-all: installed
	@$(PYTEST) -m 'not long'

# test_one_rank_fails.py runs alone, because it checks what a failed cell leaves on the GPUs.
ON_GPUS = tests/test_parity.py tests/test_certificate.py tests/test_communication_volume.py \
  tests/test_materialising.py tests/test_roofs.py tests/test_ways_to_distribute.py \
  tests/test_parameter_uses.py tests/test_gate_side_by_side.py
# Its slow tests run, too.
test-gpu: export SHARDMARK_TEST_DEVICE := cuda
test-gpu: installed
	@python -m pytest -n 8 -m 'not long' $(ON_GPUS)
	@python -m pytest -m 'not long' tests/test_one_rank_fails.py

bench: installed
	@read -ra gpus <<< "$$GPUS"; \
	  PYTHONPATH=workflow/scripts python benchmarks/against_plain_loops.py \
	  $${GPUS:+--gpus "$${gpus[@]}"} $${ROUNDS:+--rounds "$$ROUNDS"}

# The test cluster runs in namespaces of its own: it does not touch this machine's Slurm, and leaves
# nothing behind.
ON_CLUSTER = SHARDMARK_PRIVATE_NAMESPACES=1 \
  unshare --mount --net --pid --fork --kill-child --mount-proc sh -c '"$$@"; exit $$?' sh

test-slurm: installed
	@sh tests/slurm/install.sh
	@$(ON_CLUSTER) python -m pytest tests/slurm

test-slurm-long: installed
	@sh tests/slurm/install.sh
	@$(ON_CLUSTER) python -m pytest tests/slurm -m long -s

lint: installed
	@ruff check .
	@ruff format --check .
	@mypy
	@snakefmt --check Snakefile workflow/rules
	@python tests/snakemake_lint.py

lock: installed
	@uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet -o requirements.txt
	@echo uv | uv pip compile - --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet -o requirements-bootstrap.txt
	@awk -f tests/without_torch.awk requirements.txt > requirements-site.txt

schemas: installed
	@python workflow/scripts/export_schemas.py

# Overlays of the configuration, for the targets that look at a matrix: one file, or several that
# exist, with spaces between them.
READ_CONFIG = given=("$$CONFIG"); read -ra words <<< "$$CONFIG"; [ -e "$$CONFIG" ] || \
  ! ls -- "$${words[@]}" > /dev/null 2>&1 || given=("$${words[@]}");
OVERLAYS = $${CONFIG:+--configfile "$${given[@]}"}

fetch: installed
	@$(READ_CONFIG) snakemake fetch --profile profiles/local $(OVERLAYS)

doctor: installed
	@$(READ_CONFIG) python workflow/scripts/doctor.py $(OVERLAYS) $${SLURM:+--slurm}

plan: installed
	@$(READ_CONFIG) python workflow/scripts/plan.py $(OVERLAYS)

status: installed
	@$(READ_CONFIG) python workflow/scripts/status.py $(OVERLAYS) $${WATCH:+--watch} $${CHECK:+--check}

rerun: installed
	@test -n "$$METRICS" || \
	  { echo "shardmark: name the cell with make rerun METRICS=results/.../metrics.json" >&2; exit 1; }
	@python workflow/scripts/rerun.py $${YES:+--yes} "$$METRICS"

clean:
	@workflow/environment.sh remove
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .snakemake results/demo
	@find . -type d \( -name .git -prune -o -exec test -e '{}/pyvenv.cfg' \; -prune \
	  -o -name __pycache__ -prune -exec rm -rf {} + \)
