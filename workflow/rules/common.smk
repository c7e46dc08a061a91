import functools
import hashlib
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path

from snakemake.utils import update_config

SCRIPTS = Path(workflow.basedir, "workflow/scripts")
sys.path.insert(0, str(SCRIPTS))

from shardmark.cells import cells_of, parity_case, start_order
from shardmark.codebase import STAMP, code_of_cell, code_of_parity, code_sha256, sources
from shardmark.config_loading import load
from shardmark.config_files import check_file, read_arguments
from shardmark.disk import why_no_folder, why_no_room
from shardmark.errors import ConfigError, UserError
from shardmark.launching.scratch import CONTROLLER_STARTED, this_run
from shardmark.launching.site import SCRATCH_VARIABLE, why_not_at_site
from shardmark.matrix.controller import record_controller
from shardmark.matrix.progress import Progress
from shardmark.matrix.stopping import StopAtFailure
from shardmark.matrix.targets import why_not_in_matrix
from shardmark.matrix.termination import Termination
from shardmark.measurement.gpu_check import gate_ranks, why_no_gpus
from shardmark.report.contents import (
    COMPARED,
    FIGURES as FIGURE_TITLES,
    NOT_DRAWN,
    OUTCOMES,
    PAGE_TEMPLATE,
    caption_file,
    exported_files,
)
from shardmark.results.table_checksums import edited_tables
from shardmark.saved_config import save_config, saved_at
from shardmark.slurm import queue
from shardmark.slurm.executor import (
    keep_planned_order,
    leave_lost_nodes_to_slurm,
    see_cancelled_jobs,
    wait_for_orphans,
)
from shardmark.slurm.groups import (
    TURN,
    keep_results_of_lost_jobs,
    name_cells_of_groups,
    why_no_groups,
)
from shardmark.slurm.job_request import PIN_MINUTES, quoted_options, request_of
from shardmark.slurm.submission import Submission
from shardmark.strategies import label_of
from shardmark.time_limits import GATE_MINUTES, limit_minutes
from shardmark.workload.data_files import why_outdated

if workflow.is_main_process:
    # Where Snakemake would fail later, with a traceback.
    if reason := why_no_folder(Path("results")) or why_no_room(Path(".snakemake")):
        sys.exit(reason)

try:
    # Snakemake's own message names neither the file nor the line.
    for file in ("config/config.yaml", *workflow.overwrite_configfiles):
        check_file(Path(file))
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
    # Reaches every job: a cell whose result is younger has nothing left to do.
    os.environ[CONTROLLER_STARTED] = str(time.time())
    # Snakemake's executor for Slurm takes the number of a job that it runs in itself away.
    CONTROLLER = this_run()

keep_results_of_lost_jobs()


resource_scopes:
    turn="local",


if CONFIG.site.scratch is not None:
    # Reaches every job, and no cell's definition.
    os.environ[SCRATCH_VARIABLE] = CONFIG.site.scratch

# The jobs' settings. Named after its content, so that a job never reads those of another start.
CONFIG_FILE = str(saved_at(CONFIG))
if not workflow.is_main_process and not Path(CONFIG_FILE).exists():
    # A job that reads files edited since its start was planned.
    save_config(CONFIG, Path(CONFIG_FILE))

PYTHON = sys.executable
RESULTS = f"results/{CONFIG.run}"
TABLES = f"{RESULTS}/tables"
FIGURES = f"{RESULTS}/figures"
PAGE = f"{RESULTS}/report.html"
SNAKEMAKE_REPORT = f"{RESULTS}/snakemake-report.html"
# What may become a Slurm job has its run as a wildcard: Slurm is told the wildcards of a job and
# nothing else that would tell two matrices apart.
CELL = "results/{run}/{workload}/{strategy}/gpus{gpus}/seed{seed}"
BLOCK = "results/{run}/blocks/{workload}/gpus{gpus}/seed{seed}.json"
PARITY = "results/{run}/parity/{workload}/{strategy}/ranks{ranks}"
ORACLE = "results/{run}/parity/{workload}/oracle/ranks{ranks}"

CELLS = {(cell.workload, cell.strategy, cell.gpus, cell.seed): cell for cell in cells_of(CONFIG)}
PLACES = start_order(CONFIG)
CASES = {
    (workload, strategy, gpus): parity_case(CONFIG, workload, strategy, gpus)
    for workload, strategy, gpus, _ in CELLS
}


def one_of(names):
    """A wildcard's constraint: these values and no others."""
    return "|".join(map(str, names))


wildcard_constraints:
    run=re.escape(CONFIG.run),
    workload=one_of(CONFIG.matrix.workloads),
    strategy=one_of(CONFIG.matrix.strategies),
    gpus=one_of(CONFIG.matrix.gpus),
    ranks=one_of(CONFIG.matrix.gpus),
    seed=one_of(CONFIG.matrix.seeds),


# Snakemake gives every job OMP_NUM_THREADS=<threads>; a cell shares out the cores among its
# processes itself.
OWN_THREADS = "unset OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS;"

UNSUPPORTED_CELLS = [cell for cell in CELLS.values() if cell.unsupported]
UNSUPPORTED_CASES = [case for case in CASES.values() if case.cell.unsupported]


def metrics_of(cell):
    return str(cell.folder / "metrics.json")


def parity_of(case):
    return str(case.file)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def code_of(script):
    """The checksum of a script and of all that it imports, once a job asks for it."""
    return lambda wildcards: code_sha256(sources(SCRIPTS / script))


def checksum(paths):
    """Of files that belong to the code and are no Python; their place is no reason to run again."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def cell_at(wildcards):
    key = (wildcards.workload, wildcards.strategy, wildcards.gpus, wildcards.seed)
    return CELLS[key[0], key[1], int(key[2]), int(key[3])]


def case_at(wildcards):
    return CASES[wildcards.workload, wildcards.strategy, int(wildcards.ranks)]


def cell_sha256_at(wildcards):
    return cell_at(wildcards).fingerprint()


def case_sha256_at(wildcards):
    return case_at(wildcards).fingerprint()


def oracle_sha256_at(wildcards):
    """Of the case that make_oracle.py takes."""
    return parity_case(CONFIG, wildcards.workload, "ddp", int(wildcards.ranks)).fingerprint()


def cell_code_at(wildcards):
    return code_sha256(code_of_cell(cell_at(wildcards)))


def case_code_at(wildcards):
    return code_sha256(code_of_parity(case_at(wildcards)))


def data_dir_at(wildcards):
    return CONFIG.data.dir


def data_at(wildcards):
    """The record of a cell's data set; synthetic images have none.

    Fetched again, the data set is the same: no reason to run its cells again.
    """
    dataset = cell_at(wildcards).definition.dataset.name
    return [] if dataset == "synthetic" else ancient(f"{RESULTS}/data/{dataset}.json")


def all_data(wildcards):
    """The records of all data sets of the matrix."""
    names = {cell.definition.dataset.name for cell in CELLS.values()} - {"synthetic"}
    return [f"{RESULTS}/data/{name}.json" for name in sorted(names)]


def replicas_at(wildcards):
    """GPUs of a job: a cell's, or a parity case's ranks."""
    return int(wildcards.get("gpus") or wildcards.ranks)


def whole_machine(wildcards):
    """Locally a cell claims every core, so that cells that share a machine run one at a time."""
    return workflow.cores if workflow.is_main_process and workflow.local_exec else 1


@functools.cache
def ranks_held():
    """Ranks of the gate that this machine's GPUs hold at once."""
    return gate_ranks()


def parity_threads(wildcards):
    """Cores of a parity case, which set how many cases run side by side: the gate is not timed.

    A rank with a GPU takes a core, or more where the GPUs hold fewer ranks than there are cores. On
    CPUs two share one, for they mostly start and wait.
    """
    ranks, machine = replicas_at(wildcards), whole_machine(wildcards)
    if CONFIG.cluster.device == "cuda":
        cores = ranks * math.ceil(machine / (ranks_held() or machine))
    else:
        cores = ranks // 2
    return min(machine, max(1, cores))


def oracle_threads(wildcards):
    """One process, beside the others of the gate."""
    return 1 if CONFIG.cluster.device == "cuda" else parity_threads(wildcards)


def limit_minutes_at(wildcards):
    """Minutes until a cell ends itself, or until a job of the gate should long have ended."""
    is_cell = wildcards.get("strategy") and wildcards.get("gpus")
    return limit_minutes(CONFIG.cluster, cell_at(wildcards)) if is_cell else GATE_MINUTES


def request_at(wildcards):
    return request_of(CONFIG.cluster, replicas_at(wildcards), limit_minutes_at(wildcards))


def nodes_at(wildcards):
    return request_at(wildcards).nodes


def gpus_at(wildcards):
    return request_at(wildcards).gpu


def gres_at(wildcards):
    return request_at(wildcards).gres


def mpi_at(wildcards):
    return request_at(wildcards).mpi


def tasks_per_node_at(wildcards):
    return request_at(wildcards).tasks_per_node


def cpus_per_task_at(wildcards):
    return request_at(wildcards).cpus_per_task


def mem_mb_at(wildcards):
    return request_at(wildcards).mem_mb


def runtime_at(wildcards):
    return request_at(wildcards).runtime


def block_at(wildcards):
    """The record of a block's nodes, where its cells are to share them.

    Chosen anew, the nodes are no reason to run the cells again.
    """
    return ancient(BLOCK) if CONFIG.cluster.block == "pinned" else []


@functools.cache
def orphans():
    """Jobs that a controller which is gone left in Slurm's queue.

    Asked before this controller submits its own.
    """
    if workflow.dryrun or workflow.executor_plugin.name != "slurm":
        return []
    return queue.jobs_of(Path(), queue.comments_of(CELLS.values()))


SBATCH_OPTIONS = quoted_options(CONFIG.cluster)


def slurm_extra_at(wildcards, input):
    """Options of sbatch that have no resource of their own, for a cell."""
    options = [SBATCH_OPTIONS]
    if "block" in input.keys() and input.block:
        nodes = json.loads(Path(input.block).read_text())["nodes"]
        options.append(f"--nodelist={','.join(nodes)}")
    return " ".join(filter(None, options))


# One process emulates the oracle's replicas one after another.
ORACLE_REQUEST = request_of(CONFIG.cluster, 1, GATE_MINUTES)
# Where Slurm assigns no GPUs, only a node of its own keeps a job off another's GPU.
GATE_EXTRA = SBATCH_OPTIONS if CONFIG.cluster.gpus_unassigned else ""

# Goes first: a strategy that is not the same training shows before hours are spent on its cells.
PARITY_PRIORITY = len(CELLS) + 1


def place_at(wildcards):
    """A cell's planned place: 0 starts first."""
    cell = cell_at(wildcards)
    return PLACES[cell.workload, cell.strategy, cell.gpus, cell.seed]


def start_priority(wildcards):
    """The planned order: the cell of place 0 has the highest priority."""
    return len(PLACES) - place_at(wildcards)


def obtainable(paths):
    """Every path where cells may be trained; those that are there where they may not."""
    allowed = workflow.dag_settings.allowed_rules
    if not allowed or "train" in allowed:
        return paths
    planned = {metrics_of(cell) for cell in UNSUPPORTED_CELLS}
    planned |= {parity_of(case) for case in UNSUPPORTED_CASES}
    return [path for path in paths if path in planned or Path(path).exists()]


@functools.cache
def force_edited_tables():
    """Make Snakemake run the rules again whose tables are not as they were written.

    On the command line --forcerun would also make the tables targets.
    """
    edited = [str(path) for path in edited_tables(Path(TABLES))]
    for path in edited:
        print(f"edited: {path}; it is made anew", file=sys.stderr)
    workflow.dag.forcefiles.update(edited)


def all_metrics(wildcards):
    # Every table depends on the results, so this is read before Snakemake looks for what to run.
    if workflow.is_main_process:
        force_edited_tables()
    return obtainable([metrics_of(cell) for cell in CELLS.values()])


def all_stamps(wildcards):
    """What tells a cell that is owed another run from one whose result stands."""
    trained = [cell for cell in CELLS.values() if not cell.unsupported]
    return obtainable([str(cell.folder / STAMP) for cell in trained])


def all_verdicts(wildcards):
    return obtainable([parity_of(case) for case in CASES.values()])


onstart:
    try:
        save_config(CONFIG, Path(CONFIG_FILE))
    except OSError as error:
        sys.exit(f"{CONFIG_FILE}: cannot be written ({error.strerror})")
    jobs = list(workflow.dag.needrun_jobs())
    planned = [cell_at(job.wildcards) for job in jobs if job.rule.name == "train"]
    gate = [case_at(job.wildcards) for job in jobs if job.rule.name == "check_parity"]
    if reason := why_no_room(Path(RESULTS)):
        sys.exit(reason)
    if planned and CONFIG.cluster.device == "cuda" and workflow.local_exec:
        reason = why_no_gpus(max(cell.gpus for cell in planned))
        if reason:
            sys.exit(f"cluster.device is cuda, but {reason}")
    if planned:
        try:
            reason = why_not_at_site(CONFIG.site)
        except UserError as error:
            reason = str(error)
        if reason:
            sys.exit(reason)
        record_controller(Path(RESULTS), CONTROLLER)
    if workflow.executor_plugin.name == "slurm":
        if workflow.executor_settings.array_jobs:
            sys.exit(
                "--slurm-array-jobs cannot be used: every task of an array gets the resources of "
                "its first cell and, on several nodes, also trains that cell"
            )
        groups = workflow.group_settings.overwrite_groups
        reason = why_no_groups(groups, workflow.dag, pinned=CONFIG.cluster.block == "pinned")
        if reason:
            sys.exit(reason)
        # A job has one turn, and the cells of its group take it one after the other.
        workflow.register_resource(TURN, 1)
        keep_planned_order()
        see_cancelled_jobs()
        leave_lost_nodes_to_slurm(workflow.scheduler._executor)
        name_cells_of_groups()
        wait_for_orphans(orphans())
        own = queue.comments_of(CELLS.values()) if gate else None
        Submission.attach(workflow.scheduler._executor, workflow.scheduler, own)
    if orphans():
        numbers = ", ".join(job.job_id for job in orphans())
        print(
            f"{len(orphans())} job(s) of a controller that is gone are still queued or running "
            f"({numbers}); what they work on is waited for and not started again"
        )
    on_slurm = workflow.executor_plugin.name == "slurm"
    own = queue.comments_of(CELLS.values()) if on_slurm else None
    Termination(workflow, Path(RESULTS), own).attach()
    if not workflow.output_settings.verbose:
        Progress.attach(logger, planned, gate)
    if CONFIG.on_failure == "stop":
        logger.addHandler(StopAtFailure(planned, workflow.scheduler, own))
