import functools
import hashlib
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path

SCRIPTS = Path(workflow.basedir, "workflow/scripts")
sys.path.insert(0, str(SCRIPTS))

from shardmark.cells import cells_of, parity_case, start_order
from shardmark.codebase import STAMP, code_of_cell, code_of_parity, code_sha256, sources
from shardmark.config import labels_of
from shardmark.config_loading import load
from shardmark.config_files import check_file
from shardmark.errors import ConfigError, UserError
from shardmark.launching.scratch import CONTROLLER_STARTED, this_run
from shardmark.launching.site import SCRATCH_VARIABLE, why_no_container
from shardmark.matrix.controller import record_controller
from shardmark.matrix.progress import Progress
from shardmark.matrix.stopping import StopAtFailure
from shardmark.measurement.gpu_check import gate_ranks, why_no_gpus
from shardmark.report.captions import (
    FIGURES as FIGURE_TITLES,
    NOT_DRAWN,
    OUTCOMES,
    PAGE_TEMPLATE,
    caption_file,
)
from shardmark.report.exports import exported_files
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
from shardmark.slurm.job_request import PIN_MINUTES, request_of
from shardmark.slurm.submission import Submission

try:
    # Snakemake's own message names neither the file nor the line.
    for file in ("config/config.yaml", *workflow.overwrite_configfiles):
        check_file(Path(file))
except ConfigError as error:
    sys.exit(str(error))


configfile: "config/config.yaml"


try:
    CONFIG = load(config)
except ConfigError as error:
    sys.exit(str(error))

if workflow.is_main_process:
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

# The rules that read results and never train; all that `snakemake report` may run.
AGGREGATES = ["collect", "summarise", "compare", "export_tables", "plot"]
AGGREGATES += ["plot_outcomes", "write_report", "write_snakemake_report"]
if UNSUPPORTED_CELLS:
    AGGREGATES.append("mark_unsupported")


def metrics_of(cell):
    return str(cell.folder / "metrics.json")


def parity_of(case):
    return str(case.file)


def figures_of(workload, kind):
    """All figures of a workload in one format."""
    return [f"{FIGURES}/{workload}/{name}.{kind}" for name in FIGURE_TITLES]


def figure_labels(title):
    """What Snakemake's report says beside a figure: also what its caption cannot know."""

    def labels(wildcards):
        cell = next(c for c in CELLS.values() if c.workload == wildcards.workload)
        return {
            "workload": wildcards.workload,
            "figure": title,
            "baseline": labels_of(CONFIG)[CONFIG.baseline],
            "seeds": len(CONFIG.matrix.seeds),
            "scaling": cell.scaling,
        }

    return labels


def drawn_at(wildcards):
    """The figures of a workload in every format."""
    kinds = ("svg", "pdf", "png")
    return [path for kind in kinds for path in figures_of(wildcards.workload, kind)]


def all_figures(wildcards):
    """Every figure, and what says which could not be drawn."""
    return [
        path
        for workload in CONFIG.matrix.workloads
        for path in (
            *figures_of(workload, "svg"),
            f"{FIGURES}/{workload}/{OUTCOMES}.svg",
            f"{FIGURES}/{workload}/{NOT_DRAWN}",
        )
    ]


def to_json(section):
    """A part of the configuration as a script's argument, and as what a job depends on."""
    return section.model_dump_json(by_alias=True)


def code_of(script):
    """The checksum of a script and of all that it imports."""
    return code_sha256(sources(SCRIPTS / script))


def checksum(paths):
    """Of files that belong to the code and are no Python; their place is no reason to run again."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def cell_at(wildcards):
    key = (wildcards.workload, wildcards.strategy, wildcards.gpus, wildcards.seed)
    return CELLS[key[0], key[1], int(key[2]), int(key[3])]


def case_at(wildcards):
    return CASES[wildcards.workload, wildcards.strategy, int(wildcards.ranks)]


def cell_json_at(wildcards):
    return to_json(cell_at(wildcards))


def case_json_at(wildcards):
    return to_json(case_at(wildcards))


def oracle_json_at(wildcards):
    """The oracle does not depend on the strategy; ddp runs at every replica count."""
    case = parity_case(CONFIG, wildcards.workload, "ddp", int(wildcards.ranks))
    return to_json(case)


def cell_code_at(wildcards):
    return code_sha256(code_of_cell(cell_at(wildcards)))


def case_code_at(wildcards):
    return code_sha256(code_of_parity(case_at(wildcards)))


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


def request_at(wildcards):
    return request_of(CONFIG.cluster, replicas_at(wildcards))


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


def slurm_extra_at(wildcards, input):
    """Options of sbatch that have no resource of their own, for a cell."""
    options = [CONFIG.cluster.slurm_extra]
    if "block" in input.keys() and input.block:
        nodes = json.loads(Path(input.block).read_text())["nodes"]
        options.append(f"--nodelist={','.join(nodes)}")
    return " ".join(filter(None, options))


# One process emulates the oracle's replicas one after another.
ORACLE_REQUEST = request_of(CONFIG.cluster, 1)
# Where Slurm assigns no GPUs, only a node of its own keeps a job off another's GPU.
GATE_EXTRA = CONFIG.cluster.slurm_extra if CONFIG.cluster.gpus_unassigned else ""

TIME_LIMIT_MINUTES = CONFIG.cluster.time_limit_minutes
RUNTIME_MINUTES = ORACLE_REQUEST.runtime

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


def all_metrics(wildcards):
    return obtainable([metrics_of(cell) for cell in CELLS.values()])


def all_stamps(wildcards):
    """What tells a cell that is owed another run from one whose result stands."""
    trained = [cell for cell in CELLS.values() if not cell.unsupported]
    return obtainable([str(cell.folder / STAMP) for cell in trained])


def all_verdicts(wildcards):
    return obtainable([parity_of(case) for case in CASES.values()])


def nested_snakemake():
    """A Snakemake of this very configuration that takes no lock and no profile."""
    command = [PYTHON, "-m", "snakemake", "--nolock", "--nocolor", "--quiet", "host"]
    command += ["--profile", "none", "--workflow-profile", "none"]
    command += ["--executor", "local", "--cores", "1"]
    command += ["--snakefile", str(workflow.main_snakefile)]
    if workflow.overwrite_configfiles:
        command += ["--configfile", *map(str, workflow.overwrite_configfiles)]
    if workflow.config_settings.config_args:
        command += ["--config", *workflow.config_settings.config_args]
    return shlex.join(command)


onstart:
    jobs = list(workflow.dag.needrun_jobs())
    planned = [cell_at(job.wildcards) for job in jobs if job.rule.name == "train"]
    gate = [case_at(job.wildcards) for job in jobs if job.rule.name == "check_parity"]
    if planned and CONFIG.cluster.device == "cuda" and workflow.local_exec:
        reason = why_no_gpus(max(cell.gpus for cell in planned))
        if reason:
            sys.exit(f"cluster.device is cuda, but {reason}")
    if planned:
        try:
            reason = why_no_container(CONFIG.site)
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
    if not workflow.output_settings.verbose:
        Progress.attach(logger, planned, gate)
    if CONFIG.on_failure == "stop":
        on_slurm = workflow.executor_plugin.name == "slurm"
        own = queue.comments_of(CELLS.values()) if on_slurm else None
        logger.addHandler(StopAtFailure(planned, workflow.scheduler, own))
