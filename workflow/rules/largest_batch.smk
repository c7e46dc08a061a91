from shardmark.codebase import code_of_search

LARGEST_BATCH = "results/{run}/largest_batch/{workload}/{strategy}/gpus{gpus}"


def search_sha256_at(wildcards):
    return search_at(wildcards).fingerprint()


def search_code_at(wildcards):
    return code_sha256(code_of_search(search_at(wildcards)))


if SEARCHES:

    # The default priority, so that the cells go first.
    rule find_largest_batch:
        input:
            data=data_at,
        output:
            f"{LARGEST_BATCH}.json",
        log:
            f"{LARGEST_BATCH}.log",
        threads: whole_machine
        resources:
            **MACHINES,
            runtime=requested("runtime"),
            turn=1,
            time_limit_minutes=limit_minutes_at,
            # A string, because Snakemake's numeric resources are integers.
            stall_limit_minutes=str(CONFIG.cluster.stall_limit_minutes),
            slurm_extra=lambda wildcards: SBATCH_OPTIONS,
        params:
            search=search_sha256_at,
            code=search_code_at,
        shell:
            "{OWN_THREADS} {PYTHON:q} {SCRIPTS:q}/find_largest_batch.py --config {CONFIG_FILE:q}"
            " --workload {wildcards.workload} --strategy {wildcards.strategy}"
            " --gpus {wildcards.gpus}"
            " --time-limit-minutes {resources.time_limit_minutes}"
            " --stall-limit-minutes {resources.stall_limit_minutes}"
            " --output {output:q} > {log:q} 2>&1"


if UNSUPPORTED_SEARCHES:

    ruleorder: mark_unsupported > find_largest_batch
