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


# Not ancient: Snakemake does not look at the parameters of a job whose ancient input is made anew, so
# an edit would not run its cells again.
def check_at(wildcards):
    """The record that a training of the user's own has been checked on one batch."""
    own = isinstance(CONFIG.workloads[wildcards.workload], OwnWorkload)
    return f"{RESULTS}/checks/{wildcards.workload}.txt" if own else []


def strategy_check_at(wildcards):
    """The record that a strategy of the user's own has been checked in one step."""
    own = wildcards.strategy in CONFIG.strategies
    return f"{RESULTS}/checks/{wildcards.workload}/{wildcards.strategy}.txt" if own else []


def training_at(wildcards):
    """The definition of a training of the user's own."""
    return CONFIG.workloads[wildcards.workload]


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
        f"{RESULTS}/checks/{{workload}}.txt",
    log:
        f"{RESULTS}/checks/{{workload}}.log",
    params:
        code=lambda wildcards: code_sha256(code_of_file(training_at(wildcards).file)),
        definition=lambda wildcards: training_at(wildcards).model_dump_json(),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/check_training.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --output {output:q} > {log:q} 2>&1"


rule check_strategy:
    input:
        check_at,
    output:
        f"{RESULTS}/checks/{{workload}}/{{strategy}}.txt",
    log:
        f"{RESULTS}/checks/{{workload}}/{{strategy}}.log",
    params:
        code=lambda wildcards: code_sha256(code_of_file(CONFIG.strategies[wildcards.strategy].file)),
        definition=lambda wildcards: CONFIG.strategies[wildcards.strategy].model_dump_json(),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/check_strategy.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --strategy {wildcards.strategy}"
        " --output {output:q} > {log:q} 2>&1"
