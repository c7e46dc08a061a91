"""A copy of the project, and Snakemake in it with profiles/slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cluster import ACCOUNT, PARTITION
from shardmark.metrics import Metrics, read_metrics

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = ROOT / "tests/stand_ins"
SCRIPTS = "workflow/scripts"
CONFIG = "matrix.yaml"
# The user's two lines of the profile; the third, cluster.gpus_per_node, is in the matrix.
EDITS = {"my_account": ACCOUNT, "my_partition": PARTITION}
# A job here lasts seconds.
POLLING = {
    "slurm-init-seconds-before-status-checks: 40": "slurm-init-seconds-before-status-checks: 1",
    "latency-wait: 60": "latency-wait: 10",
}
# The executor's wait between two looks grows by 10 s each time, whatever the profile says.
EVEN_POLLING = """
if workflow.is_main_process:
    from snakemake_executor_plugin_slurm import Executor

    Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, value: None)
"""
MATRIX = """
run: t
matrix: {{workloads: [small], strategies: [{strategies}], gpus: [{gpus}], seeds: [{seeds}]}}
workloads:
  small:
    model: {{name: resnet8}}
    dataset: {{name: synthetic, train_images: 64, test_images: 16}}
    batch: {{global: 16}}
    optimizer: {{name: sgd, learning_rate: 0.05}}
    precision: fp32
measure:
  {{steady_min_s: {steady_s}, steady_max_s: {steady_s}, warmup_min_steps: 2, warmup_max_steps: 4}}
cluster: {{{cluster}}}
"""
CLUSTER = {"gpus_per_node": 2, "cpus_per_gpu": 2, "mem_gb_per_gpu": 3, "time_limit_minutes": 5}
# The cells train on the CPU; the GPUs of the nodes are asked for all the same, as their sizes say.
FAKE_GPUS = (
    "gpu=int(wildcards.gpus) if int(wildcards.gpus) <= 2 else None",
    "gres='gpu:2' if int(wildcards.gpus) > 2 else None",
)


class SlurmProject:
    """The project in a folder of its own.

    Args:
        folder: an empty folder that every node sees.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Snakefile", "config", "profiles", "pyproject.toml", "workflow"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)
        (folder / "resources").mkdir()
        # What follows the cells is tested elsewhere.
        for script in ("collect", "summarise", "compare_strategies", "plot", "report_page"):
            shutil.copy(STAND_INS / "write_outputs.py", folder / SCRIPTS / f"{script}.py")
        profile = folder / "profiles/slurm/config.yaml"
        text = profile.read_text()
        for placeholder, mine in EDITS.items():
            line = next(line for line in text.splitlines() if placeholder in line)
            text = text.replace(line, line.replace("# ", "").replace(placeholder, mine))
        for before, after in POLLING.items():
            assert before in text
            text = text.replace(before, after)
        profile.write_text(text)
        with (folder / "Snakefile").open("a") as snakefile:
            snakefile.write(EVEN_POLLING)

    def stand_in(self) -> None:
        """Put a stand-in in the place of the script that trains."""
        shutil.copy(STAND_INS / "run_cell.py", self.folder / SCRIPTS)

    def matrix(
        self,
        strategies: str,
        gpus: str,
        seeds: str = "0",
        device: str = "cpu",
        slurm_extra: str = "",
        steady_s: float = 0.3,
        **cluster: object,
    ) -> None:
        """Write the configuration; ``cluster`` are further keys of its section."""
        keys = CLUSTER | {"device": device, "slurm_extra": f"'{slurm_extra}'"} | cluster
        section = ", ".join(f"{key}: {value}" for key, value in keys.items())
        text = MATRIX.format(
            strategies=strategies, gpus=gpus, seeds=seeds, steady_s=steady_s, cluster=section
        )
        (self.folder / CONFIG).write_text(text)

    def command(self, *arguments: str, fake_gpus: bool = False) -> list[str]:
        """Snakemake with the profile; ``fake_gpus`` asks for GPUs that no cell uses."""
        command = [sys.executable, "-m", "snakemake", *arguments, "--profile", "profiles/slurm"]
        if fake_gpus:
            asked = [f"{rule}:{each}" for rule in ("train",) for each in FAKE_GPUS]
            command += ["--set-resources", *asked]
        return [*command, "--configfile", CONFIG]

    def run(self, *arguments: str, fake_gpus: bool = False) -> subprocess.CompletedProcess[str]:
        """Run it to its end, the text of both streams in ``stdout``."""
        return subprocess.run(
            self.command(*arguments, fake_gpus=fake_gpus),
            cwd=self.folder,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def status(self) -> str:
        """What the status view prints."""
        command = [sys.executable, f"{SCRIPTS}/status.py", "--configfile", CONFIG]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @staticmethod
    def environment() -> dict[str, str]:
        """The user's own; gloo must not look for the network that the machine's name stands for."""
        return os.environ | {"GLOO_SOCKET_IFNAME": "lo"}

    def path(self, strategy: str, gpus: int, seed: int = 0) -> str:
        """A cell's result, as a target."""
        return f"results/t/small/{strategy}/gpus{gpus}/seed{seed}/metrics.json"

    def metrics(self, strategy: str, gpus: int, seed: int = 0) -> Metrics:
        """A cell's result."""
        return read_metrics(self.folder / self.path(strategy, gpus, seed))
