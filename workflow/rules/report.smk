localrules:
    write_report,
    write_snakemake_report,
    report,


# Not a parameter: which files the configuration was merged from is no reason to build again.
SNAKEMAKE = nested_snakemake()


rule write_report:
    input:
        cells=rules.collect.output.cells,
        figures=all_figures,
        tables=[*rules.summarise.output, *rules.export_tables.output],
        comparisons=rules.compare.output.comparisons,
        scaling=rules.compare.output.scaling,
        verdict=rules.compare.output.verdict,
    output:
        report(PAGE, category="Report", caption="../report/report.rst"),
    log:
        f"{RESULTS}/report.log",
    params:
        config=CONFIG_FILE,
        figures=FIGURES,
        code=code_of("report_page.py"),
        texts=checksum([PAGE_TEMPLATE, *map(caption_file, FIGURE_TITLES)]),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/report_page.py --cells {input.cells:q} --figures {params.figures}"
        " --comparisons {input.comparisons:q} --scaling {input.scaling:q}"
        " --verdict {input.verdict:q}"
        " --config {params.config:q} --output {output:q}"
        " > {log:q} 2>&1"


rule write_snakemake_report:
    input:
        all_figures,
        rules.summarise.output,
        rules.compare.output,
        page=PAGE,
    output:
        SNAKEMAKE_REPORT,
    log:
        f"{RESULTS}/snakemake-report.log",
    shell:
        "{SNAKEMAKE} --report {output:q} {input.page:q} > {log:q} 2>&1"


# The words `snakemake report`: from the cells that there are, however much is missing or stale. The
# page is always written anew, since it names what is missing, which no input tells.
rule report:
    log:
        f"{RESULTS}/report-command.log",
    params:
        config=CONFIG_FILE,
        rules=AGGREGATES,
        page=PAGE,
        beside=SNAKEMAKE_REPORT,
    shell:
        "{PYTHON:q} {SCRIPTS:q}/name_gaps.py --config {params.config:q} || exit 1;"
        " {SNAKEMAKE} --forcerun write_report plot_outcomes export_tables --allowed-rules {params.rules} -- {params.page:q} {params.beside:q} > {log:q} 2>&1"
        " && echo report: {params.page:q}"
