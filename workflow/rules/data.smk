def data_dir_at(wildcards):
    return CONFIG.data.dir


def data_at(wildcards):
    """The record of a workload's data set, or the user's own files; generated samples have neither.

    ancient: fetching a data set again does not change it, so its cells need not run again. A file
    of the user's may change, and then they must.
    """
    definition = CONFIG.workloads[wildcards.workload]
    if definition.dataset.name in FETCHED:
        return ancient(f"{RESULTS}/data/{definition.dataset.name}.json")
    return definition.own_files or check_at(wildcards)


def check_of(workload):
    """The record that a training of the user's own has been checked on one batch.

    ancient: checking it again is no reason to run cells again; the checksum of their code is.
    """
    own = isinstance(CONFIG.workloads[workload], OwnWorkload)
    return ancient(f"{RESULTS}/checks/workloads/{workload}.txt") if own else []


def check_at(wildcards):
    return check_of(wildcards.workload)


def strategy_check_at(wildcards):
    """The record that a strategy of the user's own has been checked in one step."""
    own = wildcards.strategy in CONFIG.strategies
    return ancient(f"{RESULTS}/checks/strategies/{wildcards.strategy}.txt") if own else []


def all_data(wildcards):
    """The records of all data sets of the matrix."""
    names = {cell.definition.dataset.name for cell in CELLS.values()} & set(FETCHED)
    return [f"{RESULTS}/data/{name}.json" for name in sorted(names)]


localrules:
    fetch,
    fetch_data,
    check_training,
    check_strategy,


# All data sets of the matrix. Fetch them where there is internet; a cluster's nodes may have none.
rule fetch:
    input:
        all_data,


rule fetch_data:
    output:
        f"{RESULTS}/data/{{dataset}}.json",
    log:
        f"{RESULTS}/data/{{dataset}}.log",
    wildcard_constraints:
        dataset="|".join(FETCHED),
    params:
        # A function, because Snakemake would expand braces in a string.
        dir=data_dir_at,
        download=str(CONFIG.data.download).lower(),
        # Files that were removed or changed after the fetch make Snakemake fetch again. The next
        # run checks the files once more, because this is empty then.
        changed=lambda wildcards: why_outdated(Path(RESULTS, f"data/{wildcards.dataset}.json")),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/fetch_data.py --dataset {wildcards.dataset} --dir {params.dir:q}"
        " --download {params.download} --output {output:q} > {log:q} 2>&1"


# Before any job is queued: a mistake in the user's file is cheapest here.
rule check_training:
    output:
        f"{RESULTS}/checks/workloads/{{workload}}.txt",
    log:
        f"{RESULTS}/checks/workloads/{{workload}}.log",
    params:
        code=lambda wildcards: code_sha256(code_of_oracle(CONFIG.workloads[wildcards.workload])),
        definition=lambda wildcards: CONFIG.workloads[wildcards.workload].model_dump_json(),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/check_training.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --output {output:q} 2>&1 | tee {log:q}"


def checked_cell_at(wildcards):
    return parity_case(CONFIG, CONFIG.matrix.workloads[0], wildcards.strategy, 1).cell


rule check_strategy:
    input:
        # The strategy trains the matrix's first workload.
        check_of(CONFIG.matrix.workloads[0]),
    output:
        f"{RESULTS}/checks/strategies/{{strategy}}.txt",
    log:
        f"{RESULTS}/checks/strategies/{{strategy}}.log",
    params:
        code=lambda wildcards: code_sha256(code_of_check(checked_cell_at(wildcards))),
        cell=lambda wildcards: checked_cell_at(wildcards).fingerprint(),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/check_strategy.py --config {CONFIG_FILE:q}"
        " --strategy {wildcards.strategy} --output {output:q} 2>&1 | tee {log:q}"
