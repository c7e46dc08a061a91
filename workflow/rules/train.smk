if CONFIG.cluster.block == "pinned":

    # A block is a workload, seed and GPU count. Slurm chooses its nodes; its cells follow to them.
    rule pin_block:
        output:
            BLOCK,
        log:
            BLOCK.replace(".json", ".log"),
        resources:
            gpu=gpus_at,
            gres=gres_at,
            nodes=nodes_at,
            mpi=mpi_at,
            tasks_per_node=tasks_per_node_at,
            cpus_per_task=cpus_per_task_at,
            mem_mb=mem_mb_at,
            runtime=PIN_MINUTES,
            slurm_extra=CONFIG.cluster.slurm_extra,
        shell:
            "{PYTHON:q} {SCRIPTS:q}/pin_block.py --output {output:q} > {log:q} 2>&1"


rule train:
    input:
        data=data_at,
        block=block_at,
    output:
        # Kept until the new result is there, and put back if there is none.
        metrics=update(f"{CELL}/metrics.json"),
        # Deleted when a rerun fails, so that the result which is put back is seen as owed a run.
        # Without it Snakemake takes the new definition for done.
        stamp=f"{CELL}/{STAMP}",
    log:
        f"{CELL}/job.log",
    priority: start_priority
    threads: whole_machine
    resources:
        gpu=gpus_at,
        gres=gres_at,
        nodes=nodes_at,
        mpi=mpi_at,
        tasks_per_node=tasks_per_node_at,
        cpus_per_task=cpus_per_task_at,
        mem_mb=mem_mb_at,
        runtime=runtime_at,
        turn=1,
        time_limit_minutes=limit_minutes_at,
        # No parameter: another place in the order is no reason to run again.
        place=place_at,
        # A string, since Snakemake knows no fraction in a resource.
        stall_limit_minutes=str(CONFIG.cluster.stall_limit_minutes),
        slurm_extra=slurm_extra_at,
    params:
        # The cell's settings, which the job reads from CONFIG_FILE: another value runs it again.
        cell=cell_sha256_at,
        # Edited code reruns the cells that it can affect; a touched file, or a fresh checkout, none.
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
            metrics=[metrics_of(cell) for cell in UNSUPPORTED_CELLS],
            parity=[parity_of(case) for case in UNSUPPORTED_CASES],
        log:
            f"{RESULTS}/unsupported.log",
        params:
            cells=[cell.fingerprint() for cell in UNSUPPORTED_CELLS],
            cases=[case.fingerprint() for case in UNSUPPORTED_CASES],
        shell:
            "{PYTHON:q} {SCRIPTS:q}/mark_unsupported.py --config {CONFIG_FILE:q} > {log:q} 2>&1"
