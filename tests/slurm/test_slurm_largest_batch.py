"""The search for the largest batch as a job over two nodes, with new processes in the same job."""

from __future__ import annotations

from accounting import jobs, options
from shardmark.largest_batch import LargestBatch
from shardmark.result_files import read_record
from shardmark.slurm.queue import comments_of
from slurm_project import CONFIG, SCRIPTS, SlurmProject
from small_matrix import cell_at

FILE = "results/t/largest_batch/small/ddp/gpus4.json"
LIMITED = """
class Limited(Ddp):
    def forward(self, inputs):
        if len(inputs[0]) > 3 and self.task.runtime.rank == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(inputs)


if __name__ == "__main__":
    import torch

    main(Limited)
"""


def test_a_search_over_two_nodes_starts_new_processes_in_its_job(project: SlurmProject) -> None:
    project.matrix("ddp", "4", time_limit_minutes=10)
    with (project.folder / CONFIG).open("a") as config:
        config.write("largest_batch: {workloads: [small], most: 4}\n")
    script = project.folder / SCRIPTS / "train_ddp.py"
    script.write_text(script.read_text().partition("if __name__")[0] + LIMITED)
    done = project.run(FILE)
    log = (project.folder / FILE).with_suffix(".log")
    assert done.returncode == 0, done.stdout + log.read_text()
    largest = read_record(project.folder / FILE, LargestBatch)
    assert (largest.status, largest.micro_batch) == ("found", 3)
    assert [trial.outcome for trial in largest.trials] == ["fits", "oom", "fits"]
    (job,) = jobs(project)
    assert job["Comment"] in comments_of([cell_at("ddp", 4)]), "a later controller knows the job"
    assert options(job)["--nodes"] == "2"
    assert options(job)["-t"] == "15", "cluster.time_limit_minutes, and time to start"
