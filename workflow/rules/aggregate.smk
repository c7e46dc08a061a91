from shardmark.report.contents import REPORT as CAPTIONS, exported_files, figure_title
from shardmark.results.table_checksums import edited_tables
from shardmark.strategies import label_of


def obtainable(paths):
    """All paths if cells may be trained; else only those that exist or need no training."""
    allowed = workflow.dag_settings.allowed_rules
    if not allowed or "train" in allowed:
        return paths
    planned = {metrics_path(cell) for cell in UNSUPPORTED_CELLS}
    planned |= {verdict_path(case) for case in UNSUPPORTED_CASES}
    planned |= {largest_batch_path(search) for search in UNSUPPORTED_SEARCHES}
    return [path for path in paths if path in planned or Path(path).exists()]


@functools.cache
def force_edited_tables():
    """Make Snakemake rerun the rules whose tables have been edited.

    --forcerun on the command line would also make the tables targets.
    """
    edited = [str(path) for path in edited_tables(Path(TABLES))]
    for path in edited:
        print(f"edited: {path}; it is made anew", file=sys.stderr)
    workflow.dag.forcefiles.update(edited)


def all_metrics(wildcards):
    # Every table depends on the results, so Snakemake calls this before it decides what to run.
    if workflow.is_main_process:
        force_edited_tables()
    return obtainable([metrics_path(cell) for cell in CELLS.values()])


def all_stamps(wildcards):
    """The stamps, whose absence tells Snakemake that a cell must run again."""
    trained = [cell for cell in CELLS.values() if not cell.unsupported]
    return obtainable([str(cell.folder / STAMP) for cell in trained])


def all_verdicts(wildcards):
    return obtainable([verdict_path(case) for case in CASES.values()])


def all_largest_batches(wildcards):
    return obtainable([largest_batch_path(search) for search in SEARCHES.values()])


localrules:
    collect,
    summarise,
    compare,
    export_tables,
    plot,
    plot_compared,


# The only rule that reads results; every later rule reads the tables that this one writes.
rule collect:
    input:
        all_stamps,
        all_metrics,
        all_verdicts,
        all_largest_batches,
    output:
        cells=f"{TABLES}/cells.csv",
        epochs=f"{TABLES}/epochs.csv",
        failures=f"{TABLES}/failures.csv",
        parity=f"{TABLES}/parity.csv",
        largest_batches=f"{TABLES}/largest_batches.csv",
        settings=f"{TABLES}/settings.json",
        checksums=f"{TABLES}/collect.sha256",
    log:
        f"{TABLES}/collect.log",
    params:
        # Without the section report, which does not affect these tables.
        config=sha256(CONFIG.model_dump_json(by_alias=True, exclude={"report"})),
        tables=subpath(output.cells, parent=True),
        code=code_of("collect.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/collect.py --config {CONFIG_FILE:q} --tables {params.tables:q}"
        " > {log:q} 2>&1"


rule compare:
    input:
        rules.collect.output,
    output:
        f"{TABLES}/scaling.csv",
        f"{TABLES}/verdict.json",
        f"{TABLES}/compare.sha256",
        # The same where excluded runs count, too.
        multiext(
            f"{TABLES}/with_excluded/",
            "comparisons.csv",
            "scaling.csv",
            "verdict.json",
            "compare.sha256",
        ),
        comparisons=report(
            f"{TABLES}/comparisons.csv",
            category="Tables",
            caption="../report/comparisons.rst",
        ),
    log:
        f"{TABLES}/compare.log",
    params:
        tables=subpath(input[0], parent=True),
        baseline=CONFIG.baseline,
        margin=CONFIG.report.margin,
        code=code_of("compare_strategies.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/compare_strategies.py --tables {params.tables:q}"
        " --baseline {params.baseline:q} --margin {params.margin} > {log:q} 2>&1"


rule summarise:
    input:
        rules.collect.output,
        rules.compare.output,
    output:
        [f"{TABLES}/summary.{kind}" for kind in ("md", "tex", "txt")],
        f"{TABLES}/summarise.sha256",
        csv=report(f"{TABLES}/summary.csv", category="Tables", caption="../report/summary.rst"),
    log:
        f"{TABLES}/summarise.log",
    params:
        tables=subpath(input[0], parent=True),
        baseline=CONFIG.baseline,
        code=code_of("summarise.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/summarise.py --tables {params.tables:q}"
        " --baseline {params.baseline:q} > {log:q} 2>&1"


rule export_tables:
    input:
        rules.collect.output,
        rules.compare.output,
    output:
        [f"{TABLES}/{file}" for file in exported_files()],
        f"{TABLES}/export.sha256",
    log:
        f"{TABLES}/export.log",
    params:
        tables=subpath(input[0], parent=True),
        code=code_of("export_tables.py"),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/export_tables.py --tables {params.tables:q} > {log:q} 2>&1"


def figure_labels(wildcards):
    """The labels that Snakemake's report shows beside a figure."""
    cell = next(c for c in CELLS.values() if c.workload == wildcards.workload)
    return {
        "workload": wildcards.workload,
        "figure": figure_title(wildcards.figure, CONFIG.cluster.device),
        # Not the label that the user may choose: Snakemake reads its braces as wildcards.
        "baseline": label_of(CONFIG.baseline),
        "seeds": len(CONFIG.matrix.seeds),
        "scaling": cell.scaling,
    }


def figure_folder(group):
    """A folder, because only the results tell which figures can be drawn."""
    return report(
        directory(f"{FIGURES}/{{workload}}/{group}"),
        patterns=["{figure}.svg"],
        category="Figures",
        caption="../report/figure.rst",
        labels=figure_labels,
    )


PLOT = (
    "{PYTHON:q} {SCRIPTS:q}/plot.py --tables {params.tables:q}"
    " --workload {wildcards.workload} --group {params.group} --width-mm {params.width}"
    " --output {output:q} > {log:q} 2>&1"
)


rule plot:
    input:
        rules.collect.output,
    output:
        figure_folder("measured"),
    log:
        f"{FIGURES}/{{workload}}/measured.log",
    params:
        group="measured",
        tables=subpath(input[0], parent=True),
        width=CONFIG.report.figure_width_mm,
        # For figure.rst, which includes the caption of each figure.
        captions=os.path.relpath(CAPTIONS),
        code=code_of("plot.py"),
    shell:
        PLOT


# Separate, because report.margin affects only these figures.
rule plot_compared:
    input:
        rules.collect.output,
        rules.compare.output,
    output:
        figure_folder("compared"),
    log:
        f"{FIGURES}/{{workload}}/compared.log",
    params:
        group="compared",
        tables=subpath(input[0], parent=True),
        width=CONFIG.report.figure_width_mm,
        captions=os.path.relpath(CAPTIONS),
        code=code_of("plot.py"),
    shell:
        PLOT
