from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/own_files.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/parity.smk"
include: "workflow/rules/largest_batch.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/controller.smk"


report: "workflow/report/workflow.rst"


localrules:
    all,


rule all:
    default_target: True
    input:
        PAGE,
        SNAKEMAKE_REPORT,
        # A cell whose forced rerun failed must run again, though the report uses its old result.
        all_stamps,
        # Without these, Snakemake does not notice that a result or a table was deleted.
        all_metrics,
        all_verdicts,
        all_largest_batches,
        rules.collect.output,
        rules.compare.output,
        rules.summarise.output,
        rules.export_tables.output,
