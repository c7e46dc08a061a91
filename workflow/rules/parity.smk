rule make_oracle:
    output:
        f"{ORACLE}.pt",
    log:
        f"{ORACLE}.log",
    priority: PARITY_PRIORITY
    threads: oracle_threads
    resources:
        gpu=ORACLE_REQUEST.gpu,
        gres=ORACLE_REQUEST.gres,
        nodes=ORACLE_REQUEST.nodes,
        cpus_per_task=ORACLE_REQUEST.cpus_per_task,
        mem_mb=ORACLE_REQUEST.mem_mb,
        runtime=ORACLE_REQUEST.runtime,
        slurm_extra=GATE_EXTRA,
    params:
        case=oracle_sha256_at,
        code=code_of("make_oracle.py"),
    shell:
        "{OWN_THREADS} {PYTHON:q} {SCRIPTS:q}/make_oracle.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --ranks {wildcards.ranks}"
        " --output {output:q} > {log:q} 2>&1"


rule check_parity:
    input:
        oracle=f"{ORACLE}.pt",
    output:
        f"{PARITY}.json",
    log:
        f"{PARITY}.log",
    priority: PARITY_PRIORITY
    threads: parity_threads
    resources:
        gpu=gpus_at,
        gres=gres_at,
        nodes=nodes_at,
        mpi=mpi_at,
        tasks_per_node=tasks_per_node_at,
        cpus_per_task=cpus_per_task_at,
        mem_mb=mem_mb_at,
        runtime=runtime_at,
        # A string, since Snakemake knows no fraction in a resource.
        stall_limit_minutes=str(CONFIG.cluster.stall_limit_minutes),
        slurm_extra=GATE_EXTRA,
    params:
        case=case_sha256_at,
        code=case_code_at,
    shell:
        "{OWN_THREADS} {PYTHON:q} {SCRIPTS:q}/run_parity.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --strategy {wildcards.strategy}"
        " --ranks {wildcards.ranks}"
        " --stall-limit-minutes {resources.stall_limit_minutes}"
        " --oracle {input.oracle:q} --output {output:q} > {log:q} 2>&1"
