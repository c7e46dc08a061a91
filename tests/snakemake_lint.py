"""Judge what `snakemake --lint` says: fail on everything but the kinds that are waived here.

Snakemake's linter has no waivers of its own, and its command line ignores the format it is asked
for (9.27), so the text is read.
"""

import re
import subprocess
import sys

WAIVED = {
    r"Specify a conda environment or container for each rule": (
        "the cells must run on the torch that is measured, often a cluster's own (TORCH=site); the "
        "locked environment is installed by make"
    ),
    r"Shell command directly uses variable "
    r"(PYTHON|SCRIPTS|OWN_THREADS|SNAKEMAKE|COMMAND|CONFIG_FILE) from outside": (
        "the interpreter, the checkout's place, the way to call Snakemake and the file of the "
        "whole configuration are no parameters of a result: another must rerun nothing"
    ),
    r"Mixed rules and functions in same snakefile": (
        "a helper is in the rules file that uses it, so that a stage is read in one file"
    ),
}


def judge(text: str) -> tuple[list[str], set[str]]:
    """The lints that are not waived, each with its place, and the waivers that were used."""
    left: list[str] = []
    used: set[str] = set()
    place = ""
    for line in text.splitlines():
        if line.startswith("Lints for "):
            place = line.removeprefix("Lints for ").rstrip(":")
        elif match := re.match(r"    \* (.+):$", line):
            waiver = next((kind for kind in WAIVED if re.match(kind, match[1])), None)
            if waiver is None:
                left.append(f"{place}: {match[1]}")
            else:
                used.add(waiver)
    return left, used


def main() -> None:
    command = [sys.executable, "-m", "snakemake", "--lint", "--nocolor"]
    lint = subprocess.run(command, capture_output=True, text=True)
    text = lint.stdout + lint.stderr
    left, used = judge(text)
    if lint.returncode and not used and not left:
        sys.exit(f"snakemake --lint did not lint:\n{text}")
    for kind in sorted(used):
        print(f"waived: {kind}\n    because {WAIVED[kind]}")
    for kind in sorted(WAIVED.keys() - used):
        left.append(f"a waiver that nothing needs: {kind}")
    if left:
        sys.exit("snakemake --lint:\n" + "\n".join(f"    {line}" for line in left))


if __name__ == "__main__":
    main()
