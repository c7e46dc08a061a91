localrules:
    fetch,
    fetch_data,


# All data sets of the matrix, where there is internet: a cluster's nodes may have none.
rule fetch:
    input:
        all_data,


rule fetch_data:
    output:
        f"{RESULTS}/data/{{dataset}}.json",
    log:
        f"{RESULTS}/data/{{dataset}}.log",
    wildcard_constraints:
        dataset="cifar10|cifar100",
    params:
        # As a string and no function, Snakemake would expand braces in it.
        dir=data_dir_at,
        download=str(CONFIG.data.download).lower(),
        # What was removed or changed after it was fetched is a reason to fetch again. The next run
        # checks the files once more, since this is empty then.
        changed=lambda wildcards: why_outdated(Path(RESULTS, f"data/{wildcards.dataset}.json")),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/fetch_data.py --dataset {wildcards.dataset} --dir {params.dir:q}"
        " --download {params.download} --output {output:q} > {log:q} 2>&1"
