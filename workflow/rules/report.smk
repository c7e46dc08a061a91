localrules:
    write_report,
    write_snakemake_report,
    report,


# Not a parameter: which files the configuration was merged from is no reason to build again.
SNAKEMAKE = nested_snakemake()


rule write_report:
    input:
        cells=rules.collect.output.cells,
        figures=rules.plot.output,
        tables=rules.summarise.output,
    output:
        report(PAGE, category="Report", caption="../report/summary.rst"),
    log:
        f"{RESULTS}/report.log",
    params:
        config=to_json(CONFIG),
        code=code_of("report_page.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/report_page.py --output {output:q} > {log:q} 2>&1"


rule write_snakemake_report:
    input:
        rules.plot.output,
        rules.summarise.output,
        page=PAGE,
    output:
        SNAKEMAKE_REPORT,
    log:
        f"{RESULTS}/snakemake-report.log",
    shell:
        "{SNAKEMAKE} --report {output:q} {input.page:q} > {log:q} 2>&1"


# The words `snakemake report`: from the cells that there are, however much is missing or stale.
rule report:
    log:
        f"{RESULTS}/report-command.log",
    params:
        config=to_json(CONFIG),
        rules=AGGREGATES,
        page=PAGE,
        beside=SNAKEMAKE_REPORT,
    shell:
        "{PYTHON:q} {SCRIPTS:q}/name_gaps.py --config {params.config:q} || exit 1;"
        " {SNAKEMAKE} --allowed-rules {params.rules} -- {params.page:q} {params.beside:q} > {log:q} 2>&1"
        " && echo report: {params.page:q}"
