from shardmark.report.contents import GROUPS, PAGE_TEMPLATE, PALE_RUNS, caption_file


def checksum(paths):
    """The checksum of the contents of non-Python files; moving the files does not change it."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


localrules:
    write_report,
    write_snakemake_report,
    report,


# The rules that read results and never train. `snakemake report` may run only these.
AGGREGATES = [
    "collect",
    "summarise",
    "compare",
    "export_tables",
    "plot",
    "plot_compared",
    "write_report",
]
AGGREGATES += ["write_snakemake_report"]
if UNSUPPORTED_CELLS:
    AGGREGATES.append("mark_unsupported")

ALL_FIGURES = expand(
    f"{FIGURES}/{{workload}}/{{group}}", workload=CONFIG.matrix.workloads, group=GROUPS
)


def nested_snakemake():
    """The command of a Snakemake with this same configuration, without a lock or a profile."""
    command = [PYTHON, "-m", "snakemake", "--nolock", "--nocolor", "--quiet", "host"]
    command += ["--profile", "none", "--workflow-profile", "none"]
    command += ["--executor", "local", "--cores", "1"]
    command += ["--snakefile", str(workflow.main_snakefile)]
    if workflow.overwrite_configfiles:
        command += ["--configfile", *map(str, workflow.overwrite_configfiles)]
    if workflow.config_settings.config_args:
        command += ["--config", *workflow.config_settings.config_args]
    return shlex.join(command)


# A Slurm job that trains a single cell is a Snakemake of its own, without the rule all.
onsuccess:
    if any(job.rule.name == "all" for job in workflow.dag.jobs):
        said = Path(rules.collect.log[0]).read_text().splitlines()
        refused = [line for line in said if line.startswith("refused:")]
        print(*refused, f"the report is {PAGE}", sep="\n", file=sys.stderr)


# Not a parameter, because other overlay files alone are no reason to build the report again.
SNAKEMAKE = nested_snakemake()


def command_to_show():
    """What runs this matrix, as a user types it."""
    command = ["snakemake", "--profile", "profiles/local"]
    if workflow.overwrite_configfiles:
        files = [os.path.relpath(file) for file in workflow.overwrite_configfiles]
        command += ["--configfile", *files]
    if workflow.config_settings.config_args:
        command += ["--config", *workflow.config_settings.config_args]
    return shlex.join(command)


# Not a parameter, for the same reason.
COMMAND = command_to_show()


rule write_report:
    input:
        rules.collect.output,
        rules.compare.output,
        rules.summarise.output,
        rules.export_tables.output,
        figures=ALL_FIGURES,
    output:
        page=report(PAGE, category="Report", caption="../report/report.rst"),
    log:
        f"{RESULTS}/report.log",
    params:
        results=subpath(output.page, parent=True),
        margin=CONFIG.report.margin,
        code=code_of("report_page.py"),
        texts=checksum([PAGE_TEMPLATE, PALE_RUNS, *map(caption_file, FIGURE_TITLES)]),
    shell:
        "{PYTHON:q} {SCRIPTS:q}/report_page.py --results {params.results:q}"
        " --margin {params.margin} --command {COMMAND:q} --output {output.page:q}"
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


# `snakemake report` builds a report of the results that exist. `collect` always runs, because no
# input says which results are missing or stale; its output is printed for the user.
rule report:
    log:
        f"{RESULTS}/report-command.log",
    params:
        rules=AGGREGATES,
        page=PAGE,
        beside=SNAKEMAKE_REPORT,
        collected=rules.collect.log,
    shell:
        # The shell stops at the first command that fails, unless `||` handles its failure.
        "rm -f {params.collected:q}; status=0;"
        " {SNAKEMAKE} --forcerun collect --allowed-rules {params.rules}"
        " -- {params.page:q} {params.beside:q} > {log:q} 2>&1 || status=$?;"
        " grep '^edited:' {log:q} || true;"
        " cat {params.collected:q} 2> /dev/null || cat {log:q};"
        " [ $status = 0 ] || exit $status; echo report: {params.page:q}"
