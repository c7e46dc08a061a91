localrules:
    write_report,
    write_snakemake_report,
    report,


# The rules that read results and never train; all that `snakemake report` may run.
AGGREGATES = ["collect", "summarise", "compare", "export_tables", "plot", "plot_compared"]
AGGREGATES += ["write_report", "write_snakemake_report"]
if UNSUPPORTED_CELLS:
    AGGREGATES.append("mark_unsupported")

ALL_FIGURES = expand(
    [
        *figure_files((*FIGURE_TITLES, OUTCOMES), ["svg"]),
        f"{FIGURES}/{{workload}}/{NOT_DRAWN}.json",
        f"{FIGURES}/{{workload}}/{NOT_DRAWN}_compared.json",
    ],
    workload=CONFIG.matrix.workloads,
)


def nested_snakemake():
    """A Snakemake of this very configuration that takes no lock and no profile."""
    command = [PYTHON, "-m", "snakemake", "--nolock", "--nocolor", "--quiet", "host"]
    command += ["--profile", "none", "--workflow-profile", "none"]
    command += ["--executor", "local", "--cores", "1"]
    command += ["--snakefile", str(workflow.main_snakefile)]
    if workflow.overwrite_configfiles:
        command += ["--configfile", *map(str, workflow.overwrite_configfiles)]
    if workflow.config_settings.config_args:
        command += ["--config", *workflow.config_settings.config_args]
    return shlex.join(command)


# Not a parameter: which files the configuration was merged from is no reason to build again.
SNAKEMAKE = nested_snakemake()


rule write_report:
    input:
        rules.collect.output,
        rules.compare.output,
        rules.summarise.output,
        rules.export_tables.output,
        ALL_FIGURES,
    output:
        page=report(PAGE, category="Report", caption="../report/report.rst"),
    log:
        f"{RESULTS}/report.log",
    params:
        tables=TABLES,
        figures=FIGURES,
        margin=CONFIG.report.margin,
        code=code_of("report_page.py"),
        texts=checksum([PAGE_TEMPLATE, *map(caption_file, FIGURE_TITLES)]),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/report_page.py --tables {params.tables:q}"
        " --figures {params.figures:q} --margin {params.margin} --output {output.page:q}"
        " > {log:q} 2>&1"


rule write_snakemake_report:
    input:
        ALL_FIGURES,
        rules.summarise.output,
        rules.compare.output,
        page=PAGE,
    output:
        SNAKEMAKE_REPORT,
    log:
        f"{RESULTS}/snakemake-report.log",
    shell:
        "{SNAKEMAKE} --report {output:q} {input.page:q} > {log:q} 2>&1"


# The words `snakemake report`: a report of the results that exist. `collect` runs each time, since
# no input says which results are missing or stale; what it prints is for the user.
rule report:
    log:
        f"{RESULTS}/report-command.log",
    params:
        rules=AGGREGATES,
        page=PAGE,
        beside=SNAKEMAKE_REPORT,
        collected=rules.collect.log,
    shell:
        "rm -f {params.collected:q};"
        " {SNAKEMAKE} --forcerun collect --allowed-rules {params.rules}"
        " -- {params.page:q} {params.beside:q} > {log:q} 2>&1; status=$?;"
        " grep '^edited:' {log:q}; cat {params.collected:q}; [ $status = 0 ] || exit $status; echo report: {params.page:q}"
