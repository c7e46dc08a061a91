from shardmark.cells import start_order
from shardmark.codebase import code_of_cell
from shardmark.measurement.telemetry import node_name
from shardmark.slurm.job_request import PIN_MINUTES
from shardmark.slurm.pinned_nodes import nodes_of_results, read_nodes, restore_record

BLOCK = "results/{run}/blocks/{workload}/gpus{gpus}/seed{seed}.json"
PLACES = start_order(CONFIG)


def cell_sha256_at(wildcards):
    return cell_at(wildcards).fingerprint()


def cell_code_at(wildcards):
    return code_sha256(code_of_cell(cell_at(wildcards)))


def block_at(wildcards):
    """The record of a block's nodes, if its cells must share them.

    ancient: choosing nodes again is no reason to run the cells again.
    """
    if CONFIG.cluster.block != "pinned":
        return []
    record, results = BLOCK.format(**wildcards), metrics_of_block(wildcards)
    if workflow.is_main_process and runs_jobs():
        restore_nodes(record, results)
    elif workflow.dryrun and not is_current(wildcards) and would_restore_nodes(record, results):
        # A dry run writes no record. If this cell asked for it, Snakemake would list the block's
        # finished cells too: ancient does not hold for a file that a job has yet to make.
        return []
    return ancient(BLOCK)


def is_current(wildcards):
    """Whether a cell has a result of today's code."""
    folder = cell_at(wildcards).folder
    stamp = folder / STAMP
    has_result = (folder / "metrics.json").exists() and stamp.exists()
    return has_result and stamp.read_text().strip() == cell_code_at(wildcards)


def metrics_of_block(wildcards):
    """The results of the cells of a block that can run."""
    block = (wildcards.workload, int(wildcards.gpus), int(wildcards.seed))
    cells = [cell for cell in CELLS.values() if (cell.workload, cell.gpus, cell.seed) == block]
    return tuple(metrics_path(cell) for cell in cells if not cell.unsupported)


def nodes_here():
    """The nodes of a result that did not run on Slurm."""
    return [node_name()] if workflow.local_exec else []


@functools.cache
def restore_nodes(record, results):
    """Mend a missing or damaged record of nodes before Snakemake decides what to run."""
    if message := restore_record(Path(record), map(Path, results), nodes_here()):
        print(message, file=sys.stderr)


@functools.cache
def would_restore_nodes(record, results):
    """Whether a run that is no dry run would write a missing record from a result."""
    missing = not Path(record).exists()
    return missing and nodes_of_results(map(Path, results), nodes_here()) is not None


def place_at(wildcards):
    """A cell's place in the planned order: 0 starts first."""
    cell = cell_at(wildcards)
    return PLACES[cell.workload, cell.strategy, cell.gpus, cell.seed]


def start_priority(wildcards):
    """A cell's priority: the cell at place 0 has the highest."""
    return len(PLACES) - place_at(wildcards)


def slurm_extra_at(wildcards, input):
    """A cell's sbatch options that Snakemake has no resource for."""
    options = [SBATCH_OPTIONS]
    if "block" in input.keys() and input.block:
        options.append(f"--nodelist={','.join(read_nodes(Path(input.block)))}")
    return " ".join(filter(None, options))


if CONFIG.cluster.block == "pinned":

    # A block is one workload, GPU count and seed. Slurm chooses its nodes, and its cells use them.
    rule pin_block:
        output:
            BLOCK,
        log:
            BLOCK.replace(".json", ".log"),
        resources:
            **MACHINES,
            runtime=PIN_MINUTES,
            slurm_extra=lambda wildcards: SBATCH_OPTIONS,
        shell:
            "{PYTHON:q} {SCRIPTS:q}/pin_block.py --output {output:q} > {log:q} 2>&1"


rule train:
    input:
        data=data_at,
        block=block_at,
    output:
        # update: Snakemake keeps the old result, and restores it if there is no new one.
        metrics=update(f"{CELL}/metrics.json"),
        # Deleted when a rerun fails, which marks the restored result as one to run again.
        # Otherwise Snakemake would take it for the result of the new definition.
        stamp=f"{CELL}/{STAMP}",
    log:
        f"{CELL}/job.log",
    priority: start_priority
    threads: whole_machine
    resources:
        **MACHINES,
        runtime=requested("runtime"),
        turn=1,
        time_limit_minutes=limit_minutes_at,
        # Not a parameter, because another place in the order is no reason to run again.
        place=place_at,
        # A string, because Snakemake's numeric resources are integers.
        stall_limit_minutes=str(CONFIG.cluster.stall_limit_minutes),
        slurm_extra=slurm_extra_at,
    params:
        # The hash of the cell's settings, which the job reads from CONFIG_FILE. If it changes, the
        # cell runs again.
        cell=cell_sha256_at,
        # Edited code reruns the cells that it can affect; a touched file or a fresh checkout does
        # not.
        code=cell_code_at,
    shell:
        "{OWN_THREADS} {PYTHON:q} {SCRIPTS:q}/run_cell.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --strategy {wildcards.strategy}"
        " --gpus {wildcards.gpus} --seed {wildcards.seed}"
        " --time-limit-minutes {resources.time_limit_minutes}"
        " --stall-limit-minutes {resources.stall_limit_minutes} --place {resources.place}"
        " --output {output.metrics:q} > {log:q} 2>&1 && echo {params.code} > {output.stamp:q}"


if UNSUPPORTED_CELLS:

    localrules:
        mark_unsupported,

    ruleorder: mark_unsupported > train
    ruleorder: mark_unsupported > check_parity

    rule mark_unsupported:
        output:
            metrics=[metrics_path(cell) for cell in UNSUPPORTED_CELLS],
            parity=[verdict_path(case) for case in UNSUPPORTED_CASES],
            largest=[largest_batch_path(search) for search in UNSUPPORTED_SEARCHES],
        log:
            f"{RESULTS}/unsupported.log",
        params:
            cells=[cell.fingerprint() for cell in UNSUPPORTED_CELLS],
            cases=[case.fingerprint() for case in UNSUPPORTED_CASES],
            searches=[search.fingerprint() for search in UNSUPPORTED_SEARCHES],
        shell:
            "{PYTHON:q} {SCRIPTS:q}/mark_unsupported.py --config {CONFIG_FILE:q} > {log:q} 2>&1"
