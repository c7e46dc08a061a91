import functools
import hashlib
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from snakemake.utils import update_config

SCRIPTS = Path(workflow.basedir, "workflow/scripts")
sys.path.insert(0, str(SCRIPTS))

from shardmark.cells import batch_searches_of, cells_of, parity_case
from shardmark.codebase import STAMP, code_sha256, sources
from shardmark.config.files import read_arguments, read_config_file
from shardmark.config.loading import load
from shardmark.config.saved import save_config, saved_path
from shardmark.controller.targets import why_not_in_matrix
from shardmark.disk import why_no_folder, why_no_room
from shardmark.errors import ConfigError
from shardmark.launching.scratch import CONTROLLER_STARTED, this_run
from shardmark.launching.site import SCRATCH_VARIABLE
from shardmark.report.contents import FIGURES as FIGURE_TITLES
from shardmark.slurm.groups import keep_results_of_lost_jobs
from shardmark.slurm.job_request import build_request
from shardmark.time_limits import GATE_MINUTES

if workflow.is_main_process:
    # Otherwise Snakemake would fail later, with a traceback.
    if reason := why_no_folder(Path("results")) or why_no_room(Path(".snakemake")):
        sys.exit(reason)

try:
    # Snakemake's own message names neither the file nor the line.
    for file in ("config/config.yaml", *workflow.overwrite_configfiles):
        read_config_file(Path(file))
except ConfigError as error:
    sys.exit(str(error))


configfile: "config/config.yaml"


try:
    update_config(config, read_arguments(workflow.config_settings.config_args or []))
    CONFIG = load(config)
except ConfigError as error:
    sys.exit(str(error))

if workflow.is_main_process:
    # Snakemake knows its targets only after it has read the rules.
    if unknown := why_not_in_matrix(sys.argv[1:], CONFIG):
        sys.exit("\n".join(unknown))
    # Every job inherits this: a cell whose result is younger has nothing to do.
    os.environ[CONTROLLER_STARTED] = str(time.time())
    # Container images often set this. Where packages were installed without byte code, every process
    # of every cell would then compile its imports anew, which doubled their time (docs/results.md).
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Snakemake's Slurm executor unsets SLURM_JOB_ID, so read it first.
    CONTROLLER = this_run()

keep_results_of_lost_jobs()


resource_scopes:
    turn="local",


if CONFIG.site.scratch is not None:
    # Every job inherits this; it is not part of a cell's definition.
    os.environ[SCRATCH_VARIABLE] = CONFIG.site.scratch

# The jobs' settings. The name is a hash of the content, so that a job reads those of its own start.
CONFIG_FILE = str(saved_path(CONFIG))
if not workflow.is_main_process and not Path(CONFIG_FILE).exists():
    # The configuration was edited after this job was planned.
    save_config(CONFIG, Path(CONFIG_FILE))

PYTHON = sys.executable
RESULTS = f"results/{CONFIG.run}"
TABLES = f"{RESULTS}/tables"
FIGURES = f"{RESULTS}/figures"
PAGE = f"{RESULTS}/report.html"
SNAKEMAKE_REPORT = f"{RESULTS}/snakemake-report.html"
# Rules that may become Slurm jobs have the run as a wildcard, because only the wildcards in a job's
# comment tell two matrices apart in Slurm.
CELL = "results/{run}/{workload}/{strategy}/gpus{gpus}/seed{seed}"

CELLS = {(cell.workload, cell.strategy, cell.gpus, cell.seed): cell for cell in cells_of(CONFIG)}
CASES = {
    (workload, strategy, gpus): parity_case(CONFIG, workload, strategy, gpus)
    for workload, strategy, gpus, _ in CELLS
}
SEARCHES = {
    (search.cell.workload, search.cell.strategy, search.cell.gpus): search
    for search in batch_searches_of(CONFIG)
}


def runs_jobs():
    """Whether Snakemake will run jobs. A dry run, --touch or --summary must not change results."""
    return workflow.executor_plugin and not workflow.dryrun and not workflow.touch


def alternatives(names):
    """A wildcard constraint that allows only these values."""
    return "|".join(map(str, names))


wildcard_constraints:
    run=re.escape(CONFIG.run),
    workload=alternatives(CONFIG.matrix.workloads),
    strategy=alternatives(CONFIG.matrix.strategies),
    gpus=alternatives(CONFIG.matrix.gpus),
    ranks=alternatives(CONFIG.matrix.gpus),
    seed=alternatives(CONFIG.matrix.seeds),


# Snakemake sets OMP_NUM_THREADS=<threads> for every job, but a cell divides the cores among its
# processes itself.
OWN_THREADS = "unset OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS;"

UNSUPPORTED_CELLS = [cell for cell in CELLS.values() if cell.unsupported]
UNSUPPORTED_CASES = [case for case in CASES.values() if case.cell.unsupported]
UNSUPPORTED_SEARCHES = [search for search in SEARCHES.values() if search.cell.unsupported]


def metrics_path(cell):
    return str(cell.folder / "metrics.json")


def verdict_path(case):
    return str(case.file)


def largest_batch_path(search):
    return str(search.file)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def code_of(script):
    """A function that returns the checksum of a script and everything that it imports."""
    return lambda wildcards: code_sha256(sources(SCRIPTS / script))


def cell_at(wildcards):
    key = (wildcards.workload, wildcards.strategy, wildcards.gpus, wildcards.seed)
    return CELLS[key[0], key[1], int(key[2]), int(key[3])]


def case_at(wildcards):
    return CASES[wildcards.workload, wildcards.strategy, int(wildcards.ranks)]


def search_at(wildcards):
    return SEARCHES[wildcards.workload, wildcards.strategy, int(wildcards.gpus)]
