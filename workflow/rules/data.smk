from shardmark.datasets import FETCHED
from shardmark.workload.vision.data_files import fetch_command, why_outdated


def data_at(wildcards):
    """The user's own files that contain a workload's samples. If one changes, the cells run again."""
    return CONFIG.workloads[wildcards.workload].own_files


# Fetching is no input of a job: its record would make Snakemake run finished cells again whenever it
# was missing or new. The controller does it before the first job (prepare).
def fetch_commands(cells, verify):
    """The commands that check the data sets of cells, and download them if necessary.

    Args:
        verify: whether to compute the checksum of every file. Otherwise a data set needs no command
            if its files have the size and time of the last check.
    """
    folder = Path(CONFIG.data.dir)
    for name in sorted({cell.definition.dataset.name for cell in cells} & set(FETCHED)):
        record = Path(f"{RESULTS}/data/{name}.json")
        reason = why_outdated(record, folder)
        if reason or verify:
            print(f"{name}: {reason or 'complete'}; computing checksums", file=sys.stderr)
            yield fetch_command(name, folder, download=CONFIG.data.download, record=record)


localrules:
    fetch,


# All data sets of the matrix. Fetch them where there is internet; a cluster's nodes may have none.
rule fetch:
    message:
        "Fetch the data sets of the matrix."
