# Goes first: a strategy that is not the same training shows before hours are spent on its cells.
PARITY_PRIORITY = len(CELLS) + 1


# One process emulates the oracle's replicas one after another.
ORACLE_REQUEST = request_of(CONFIG.cluster, 1, GATE_MINUTES)


def case_sha256_at(wildcards):
    return case_at(wildcards).fingerprint()


def oracle_sha256_at(wildcards):
    """Of the case that make_oracle.py takes."""
    return parity_case(CONFIG, wildcards.workload, "ddp", int(wildcards.ranks)).fingerprint()


def case_code_at(wildcards):
    return code_sha256(code_of_parity(case_at(wildcards)))


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
        slurm_extra=lambda wildcards: GATE_EXTRA,
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
        **MACHINES,
        runtime=asked("runtime"),
        # A string, since Snakemake knows no fraction in a resource.
        stall_limit_minutes=str(CONFIG.cluster.stall_limit_minutes),
        slurm_extra=lambda wildcards: GATE_EXTRA,
    params:
        case=case_sha256_at,
        code=case_code_at,
    shell:
        "{OWN_THREADS} {PYTHON:q} {SCRIPTS:q}/run_parity.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --strategy {wildcards.strategy}"
        " --ranks {wildcards.ranks}"
        " --stall-limit-minutes {resources.stall_limit_minutes}"
        " --oracle {input.oracle:q} --output {output:q} > {log:q} 2>&1"
