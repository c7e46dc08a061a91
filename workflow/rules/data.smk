def data_at(wildcards):
    """The user's own files with a workload's samples; after an edit the cells run again."""
    return CONFIG.workloads[wildcards.workload].own_files


# Fetching and checking are not rules. As inputs of a job, their records would make Snakemake run
# finished cells again whenever a record was missing or new.
def fetch_commands(cells, verify):
    """The commands that check the data sets of cells, and download them if necessary.

    Args:
        verify: whether to compute the checksum of every file. Otherwise a data set needs no command
            if its files have the size and time of the last check.
    """
    for name in sorted({cell.definition.dataset.name for cell in cells} & set(FETCHED)):
        record = f"{RESULTS}/data/{name}.json"
        reason = why_outdated(Path(record), Path(CONFIG.data.dir))
        if reason or verify:
            print(f"{name}: {reason or 'complete'}; computing checksums", file=sys.stderr)
            command = ["fetch_data.py", "--dataset", name, "--dir", CONFIG.data.dir]
            command += ["--download", str(CONFIG.data.download).lower()]
            yield [*command, "--output", record]


def check_commands(wildcards):
    """The commands that check the user's own files that jobs with these wildcards run."""
    for workload in sorted({each.workload for each in wildcards}):
        definition = CONFIG.workloads[workload]
        if definition.own_code:
            names = ["--workload", workload]
            yield from check_command(
                "training", definition.file, definition.model_dump_json(), names
            )
    pairs = {(each.workload, each.get("strategy")) for each in wildcards}
    for workload, strategy in sorted(pair for pair in pairs if pair[1] in CONFIG.strategies):
        # The check trains the gate's model, by the strategy's options and for the cells' device.
        case = parity_case(CONFIG, workload, strategy, 1).fingerprint()
        names = ["--workload", workload, "--strategy", strategy]
        yield from check_command("strategy", CONFIG.strategies[strategy].file, case, names)


def check_command(kind, file, settings, names):
    """The command of one check; none if this file has passed it with these settings.

    The checksum is in the record's name, so that an edit that is undone needs no new check.
    """
    checksum = sha256(f"{code_sha256(code_of_file(file))} {settings}")
    record = f"{RESULTS}/checks/{'.'.join([*names[1::2], checksum[:16]])}.txt"
    if not Path(record).exists():
        yield [f"check_{kind}.py", "--config", CONFIG_FILE, *names, "--output", record]


def prepare(jobs, trained):
    """Check the user's own files and the data sets that jobs need, before any job starts.

    Args:
        jobs: the jobs that will run.
        trained: the cells among them, and those of searches.

    Returns:
        whether all is well; if not, a script has printed what is wrong.
    """
    training = ("train", "find_largest_batch", "make_oracle", "check_parity")
    fetching = any(job.rule.name == "fetch" for job in jobs)
    commands = [
        *check_commands([job.wildcards for job in jobs if job.rule.name in training]),
        *fetch_commands(CELLS.values() if fetching else trained, verify=fetching),
    ]
    scripts = ([PYTHON, str(SCRIPTS / script), *given] for script, *given in commands)
    return all(subprocess.run(command).returncode == 0 for command in scripts)


localrules:
    fetch,


# All data sets of the matrix. Fetch them where there is internet; a cluster's nodes may have none.
# The controller does it before the first job (prepare), so that cells in the same command find them.
rule fetch:
    message:
        "Fetch the data sets of the matrix."
