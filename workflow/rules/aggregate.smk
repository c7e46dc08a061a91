localrules:
    collect,
    summarise,
    compare,
    export_tables,
    plot,
    plot_outcomes,


rule collect:
    input:
        all_stamps,
        all_metrics,
        all_verdicts,
    output:
        cells=f"{TABLES}/cells.csv",
        epochs=f"{TABLES}/epochs.csv",
        checksums=f"{TABLES}/collect.sha256",
    log:
        f"{TABLES}/collect.log",
    params:
        config=CONFIG_FILE,
        code=code_of("collect.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/collect.py --config {params.config:q}"
        " --cells {output.cells:q} --epochs {output.epochs:q} > {log:q} 2>&1"
        " && {PYTHON:q} {SCRIPTS:q}/record_checksums.py --output {output.checksums:q}"
        " {output.cells:q} {output.epochs:q}"


rule summarise:
    input:
        rules.collect.output.cells,
    output:
        csv=report(f"{TABLES}/summary.csv", category="Tables", caption="../report/summary.rst"),
        html=report(f"{TABLES}/summary.html", category="Tables", caption="../report/summary.rst"),
        md=f"{TABLES}/summary.md",
        tex=f"{TABLES}/summary.tex",
        txt=f"{TABLES}/summary.txt",
        checksums=f"{TABLES}/summarise.sha256",
    log:
        f"{TABLES}/summarise.log",
    params:
        config=CONFIG_FILE,
        code=code_of("summarise.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/summarise.py --cells {input:q} --config {params.config:q} --output"
        " {output.csv:q} {output.html:q} {output.md:q} {output.tex:q} {output.txt:q} > {log:q} 2>&1"
        " && {PYTHON:q} {SCRIPTS:q}/record_checksums.py --output {output.checksums:q}"
        " {output.csv:q} {output.html:q} {output.md:q} {output.tex:q} {output.txt:q}"


rule compare:
    input:
        rules.collect.output.cells,
    output:
        comparisons=report(
            f"{TABLES}/comparisons.csv",
            category="Tables",
            caption="../report/comparisons.rst",
        ),
        scaling=f"{TABLES}/scaling.csv",
        verdict=f"{TABLES}/verdict.json",
        checksums=f"{TABLES}/compare.sha256",
    log:
        f"{TABLES}/compare.log",
    params:
        config=CONFIG_FILE,
        code=code_of("compare_strategies.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/compare_strategies.py --cells {input:q} --config {params.config:q}"
        " --comparisons {output.comparisons:q} --scaling {output.scaling:q}"
        " --verdict {output.verdict:q} > {log:q} 2>&1"
        " && {PYTHON:q} {SCRIPTS:q}/record_checksums.py --output {output.checksums:q}"
        " {output.comparisons:q} {output.scaling:q} {output.verdict:q}"


# The failures and gaps in it are no input of any rule: `snakemake report` writes it anew each time.
rule export_tables:
    input:
        comparisons=rules.compare.output.comparisons,
        scaling=rules.compare.output.scaling,
        verdict=rules.compare.output.verdict,
    output:
        tables=[f"{TABLES}/{name}" for name in exported_files()],
        checksums=f"{TABLES}/export.sha256",
    log:
        f"{TABLES}/export.log",
    params:
        config=CONFIG_FILE,
        code=code_of("export_tables.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/export_tables.py --comparisons {input.comparisons:q}"
        " --scaling {input.scaling:q} --verdict {input.verdict:q} --config {params.config:q}"
        " --output {output.tables:q} > {log:q} 2>&1"
        " && {PYTHON:q} {SCRIPTS:q}/record_checksums.py --output {output.checksums:q}"
        " {output.tables:q}"


rule plot:
    input:
        rules.collect.output,
        scaling=rules.compare.output.scaling,
        verdict=rules.compare.output.verdict,
    output:
        # Snakemake's report shows one format of each.
        [
            report(
                f"{FIGURES}/{{workload}}/{name}.svg",
                category="Figures",
                caption=f"../report/{name}.rst",
                labels=figure_labels(title),
            )
            for name, title in FIGURE_TITLES.items()
        ],
        figures_of("{workload}", "pdf"),
        figures_of("{workload}", "png"),
        not_drawn=f"{FIGURES}/{{workload}}/{NOT_DRAWN}",
    log:
        f"{FIGURES}/{{workload}}/plot.log",
    params:
        config=CONFIG_FILE,
        tables=subpath(input[0], parent=True),
        figures=drawn_at,
        code=code_of("plot.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/plot.py --tables {params.tables:q}"
        " --config {params.config:q} --workload {wildcards.workload}"
        " --not-drawn {output.not_drawn:q} --output {params.figures:q} > {log:q} 2>&1"


# What is missing or stale is no input of any rule: `snakemake report` draws this anew each time.
rule plot_outcomes:
    input:
        rules.collect.output.cells,
    output:
        report(
            f"{FIGURES}/{{workload}}/{OUTCOMES}.svg",
            category="Figures",
            caption=f"../report/{OUTCOMES}.rst",
            labels=figure_labels("Outcomes"),
        ),
        f"{FIGURES}/{{workload}}/{OUTCOMES}.pdf",
        f"{FIGURES}/{{workload}}/{OUTCOMES}.png",
    log:
        f"{FIGURES}/{{workload}}/plot-outcomes.log",
    params:
        config=CONFIG_FILE,
        code=code_of("plot_outcomes.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/plot_outcomes.py --config {params.config:q}"
        " --workload {wildcards.workload} --output {output:q} > {log:q} 2>&1"
