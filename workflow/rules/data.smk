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


# The check must not be ancient. If a job's ancient input is made again, Snakemake ignores the job's
# parameters, so an edit of the user's file would not rerun its cells.
def check_at(wildcards):
    """The record that a training of the user's own has been checked on one batch."""
    own = CONFIG.workloads[wildcards.workload].own_code
    return f"{RESULTS}/checks/{wildcards.workload}.txt" if own else []


def strategy_check_at(wildcards):
    """The record that a strategy of the user's own has been checked in one step."""
    own = wildcards.strategy in CONFIG.strategies
    return f"{RESULTS}/checks/{wildcards.workload}/{wildcards.strategy}.txt" if own else []


def all_data(wildcards):
    """The records of all data sets of the matrix, of which each file's checksum is computed again.

    Otherwise a file that was damaged but kept its size and time would count as whole.
    """
    names = {cell.definition.dataset.name for cell in CELLS.values()} & set(FETCHED)
    records = [f"{RESULTS}/data/{name}.json" for name in sorted(names)]
    if workflow.is_main_process:
        workflow.dag.forcefiles.update(records)
    return records


def fetch_again(cells):
    """Fetch the data sets of cells again whose files were removed or changed since.

    Snakemake itself cannot: when it runs the rule of an ancient input whose file is there, it runs
    nothing else that depends on it, not even cells without a result.

    Returns:
        why a data set could not be fetched; empty if all are whole.
    """
    for name in sorted({cell.definition.dataset.name for cell in cells} & set(FETCHED)):
        record = f"{RESULTS}/data/{name}.json"
        if reason := why_outdated(Path(record)):
            print(f"{reason}; {name} is fetched again", file=sys.stderr, flush=True)
            command = [PYTHON, str(SCRIPTS / "fetch_data.py"), "--dataset", name]
            command += ["--dir", CONFIG.data.dir]
            command += ["--download", str(CONFIG.data.download).lower(), "--output", record]
            fetched = subprocess.run(command, capture_output=True, text=True)
            if fetched.returncode:
                return fetched.stderr.strip()
    return ""


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
        code=lambda wildcards: code_sha256(code_of_file(CONFIG.workloads[wildcards.workload].file)),
        definition=lambda wildcards: CONFIG.workloads[wildcards.workload].model_dump_json(),
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
        # The check trains the gate's model, by the strategy's options and for the cells' device.
        case=lambda wildcards: parity_case(
            CONFIG, wildcards.workload, wildcards.strategy, 1
        ).fingerprint(),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/check_strategy.py --config {CONFIG_FILE:q}"
        " --workload {wildcards.workload} --strategy {wildcards.strategy}"
        " --output {output:q} > {log:q} 2>&1"
