from shardmark.codebase import code_of_file


# Checks of the user's own code. They are no inputs of a job, for the same reason as fetching: the
# controller runs them before the first job (prepare).
def check_commands(wildcards):
    """The commands that check the user's own files that jobs with these wildcards run."""
    for workload in sorted({each.workload for each in wildcards}):
        definition = CONFIG.workloads[workload]
        if definition.own_code:
            settings = definition.model_dump_json()
            yield from check_command("training", definition.file, settings, workload=workload)
    pairs = {(each.workload, each.get("strategy")) for each in wildcards}
    for workload, strategy in sorted(pair for pair in pairs if pair[1] in CONFIG.strategies):
        # The check trains the gate's model, by the strategy's options and for the cells' device.
        case = parity_case(CONFIG, workload, strategy, 1).fingerprint()
        file = CONFIG.strategies[strategy].file
        yield from check_command("strategy", file, case, workload=workload, strategy=strategy)


def check_command(kind, file, settings, **names):
    """The command of one check; none if this file has passed it with these settings.

    The checksum is in the record's name, so that an edit that is undone needs no new check.
    """
    checksum = sha256(f"{code_sha256(code_of_file(file))} {settings}")
    record = f"{RESULTS}/checks/{'.'.join([*names.values(), checksum[:16]])}.txt"
    if not Path(record).exists():
        options = [word for name, value in names.items() for word in (f"--{name}", value)]
        script = str(SCRIPTS / f"check_{kind}.py")
        yield [PYTHON, script, "--config", CONFIG_FILE, *options, "--output", record]
