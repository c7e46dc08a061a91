from shardmark.cells import oracle_cases
from shardmark.codebase import code_of_oracle, code_of_parity
from shardmark.measurement.gpu_check import count_gate_ranks

PARITY = "results/{run}/parity/{workload}/{strategy}/ranks{ranks}"
ORACLE = "results/{run}/parity/{workload}/oracle/ranks{ranks}"

# The gate goes first, so that a strategy that trains a different model costs no hours of cells.
PARITY_PRIORITY = len(CELLS) + 1


# The oracle is one process, which trains its replicas one after another.
ORACLE_REQUEST = build_request(CONFIG.cluster, 1, GATE_MINUTES)


def case_sha256_at(wildcards):
    return case_at(wildcards).fingerprint()


def oracle_sha256_at(wildcards):
    """What the oracle depends on besides roundings; all strategies share it, so it is ddp's."""
    return parity_case(CONFIG, wildcards.workload, "ddp", int(wildcards.ranks)).fingerprint()


def roundings_at(wildcards):
    """Where the strategies round weights; each place takes an oracle of its own."""
    cases = oracle_cases(CONFIG, wildcards.workload, int(wildcards.ranks))
    return sorted({case.rounding for case in cases})


def oracle_code_at(wildcards):
    return code_sha256(code_of_oracle(CONFIG.workloads[wildcards.workload]))


def case_code_at(wildcards):
    return code_sha256(code_of_parity(case_at(wildcards)))


@functools.cache
def ranks_that_fit():
    """The number of the gate's ranks that fit on this machine's GPUs at once."""
    return count_gate_ranks()


def parity_threads(wildcards):
    """Cores of a parity case, which decide how many cases run side by side; the gate is not timed.

    A rank with a GPU takes one core, or more if fewer ranks fit on the GPUs than there are cores.
    On CPUs two ranks share a core, because they spend most of their time starting and waiting.
    """
    ranks, machine = replicas_at(wildcards), whole_machine(wildcards)
    if CONFIG.cluster.device == "cuda":
        cores = ranks * math.ceil(machine / (ranks_that_fit() or machine))
    else:
        cores = ranks // 2
    return min(machine, max(1, cores))


def oracle_threads(wildcards):
    """Cores of the oracle: with GPUs, one for its one process."""
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
        roundings=roundings_at,
        code=oracle_code_at,
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
        runtime=requested("runtime"),
        # A string, because Snakemake's numeric resources are integers.
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
