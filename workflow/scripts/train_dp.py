"""DataParallel: one process, which makes new replicas in each step and sums on device 0."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import DataParallel

from shardmark.launching.rank import main
from shardmark.training.strategy import StateDict, Strategy, Task, unwrap_state
from shardmark.workload.contract import Inputs
from shardmark.workload.precision import autocast


class LossInside(nn.Module):
    """A network that enters autocast and computes its loss itself.

    DataParallel gathers the output of its replicas on device 0: for a language model's logits that
    alone would be gigabytes. It passes an outer autocast on to its replicas' threads without its
    dtype, so they would compute in float16 when bfloat16 is configured.
    """

    def __init__(self, inner: nn.Module, task: Task) -> None:
        super().__init__()
        self.inner = inner
        self.task = task

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute a replica's loss (1,) in training, and the scores (b,) of its samples after."""
        workload = self.task.workload
        compute = workload.loss if self.training else workload.evaluate
        with autocast(self.task.precision, inputs[0].device.type):
            return compute(self.inner, inputs).reshape(-1)


class LastingThreads(DataParallel[Any]):
    """DataParallel that keeps its replicas' threads from one forward pass to the next."""

    def __init__(self, module: nn.Module, device_ids: list[int]) -> None:
        super().__init__(module, device_ids)
        self.threads = [ThreadPoolExecutor(max_workers=1) for _ in device_ids]

    def parallel_apply(self, replicas: Any, inputs: Any, kwargs: Any) -> list[Any]:
        """Each replica's output, computed by its device's thread."""
        with_grad = torch.is_grad_enabled()
        # The caller's streams, because each thread has its own current stream.
        streams = [torch.cuda.current_stream(device) for device in self.device_ids]

        def apply(index: int) -> Any:
            grad_mode = torch.set_grad_enabled(with_grad)
            device = torch.cuda.device(self.device_ids[index])
            with grad_mode, device, torch.cuda.stream(streams[index]):
                return replicas[index](*inputs[index], **kwargs[index])

        pending = [self.threads[index].submit(apply, index) for index in range(len(replicas))]
        return [output.result() for output in pending]


class Dp(Strategy):
    """DataParallel over the GPUs of one node; on a CPU, one plain module.

    With several GPUs, cuDNN's search for the fastest kernels is off. torch caches cuDNN's plans per
    thread (aten/src/ATen/native/cudnn/Conv_v8.cpp), and DataParallel starts new threads in each
    forward pass, so every step would search again. A bare loop of ResNet-50 on two H100:

    ===========  ======  ================
    threads      search  images/s
    ===========  ======  ================
    new          on      730 to 1,020
    new          off     11,066 to 12,086
    lasting      on      25,244
    DDP          on      25,511
    ===========  ======  ================

    The second row is the fastest that torch's own DataParallel gets, so it is the default. It is
    slower than DDP because it still makes every plan again in each forward pass. The option
    ``cudnn_benchmark`` gives the first row, ``lasting_threads`` the third.

    Nothing else that torch keeps per thread slows DataParallel. Handles of cuDNN and cuBLAS come
    from pools that outlive a thread. Autograd computes gradients in its own threads, which persist.
    DataParallel passes the grad mode on, but not autocast's dtype (see LossInside).
    """

    module: DataParallel[Any]

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        runtime, options = task.runtime, task.cell.options
        devices: list[int] = []
        if self.device.type == "cuda":
            devices = [0] * task.cell.gpus if runtime.shared_device else list(range(task.cell.gpus))
        lasting = options["lasting_threads"] and len(devices) > 1
        searches = options["cudnn_benchmark"]
        if searches is None:
            searches = task.cell.gpus == 1 or lasting
        if not searches:
            torch.backends.cudnn.benchmark = False
        model = LossInside(task.build_model(), task)
        self.module = (
            LastingThreads(model, devices) if lasting else DataParallel(model, devices or None)
        )
        self.optimizer = task.build_optimizer(model.inner)

    def forward(self, inputs: Inputs) -> Tensor:
        """Compute the sum of all replicas' losses, on device 0."""
        losses: Tensor = self.module(*inputs)
        return losses.sum()

    def evaluate(self, inputs: Inputs) -> Tensor:
        """Compute the scores of all replicas' samples, gathered on device 0."""
        scores: Tensor = self.module(*inputs)
        return scores

    def full_state_dict(self) -> StateDict:
        """The state of device 0, which has all parameters."""
        return unwrap_state(self.module.state_dict(), "module.inner.")

    def effective_config(self) -> dict[str, Any]:
        """The settings, with the devices that it scatters to."""
        return super().effective_config() | {
            "own": {
                "device_ids": list(self.module.device_ids),
                "lasting_threads": isinstance(self.module, LastingThreads),
            }
        }


if __name__ == "__main__":
    main(Dp)
