"""The workload, the same for every strategy: model, data, optimizer and precision."""
