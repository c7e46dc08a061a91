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


def check_at(wildcards):
    """The record that a training of the user's own has been checked on one batch."""
    definition = CONFIG.workloads[wildcards.workload]
    return f"{RESULTS}/checks/{wildcards.workload}.txt" if isinstance(definition, OwnWorkload) else []


def own_file_at(wildcards):
    return CONFIG.workloads[wildcards.workload].file


def all_data(wildcards):
    """The records of all data sets of the matrix."""
    names = {cell.definition.dataset.name for cell in CELLS.values()} & set(FETCHED)
    return [f"{RESULTS}/data/{name}.json" for name in sorted(names)]


localrules:
    fetch,
    fetch_data,
    check_training,


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
    input:
        own_file_at,
    output:
        f"{RESULTS}/checks/{{workload}}.txt",
    log:
        f"{RESULTS}/checks/{{workload}}.log",
    params:
        code=lambda wildcards: code_sha256(code_of_oracle(CONFIG.workloads[wildcards.workload])),
        definition=lambda wildcards: CONFIG.workloads[wildcards.workload].model_dump_json(),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/check_training.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --output {output:q} 2>&1 | tee {log:q}"
