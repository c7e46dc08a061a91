"""Environment variables that tell a parity case's ranks how GPUs are shared."""

# "1" if all ranks share one GPU. That is only a functional check, never a timing.
SHARED_DEVICE = "SHARDMARK_SHARED_DEVICE"
# A file on this machine. The case that holds its lock is the next to use GPUs.
TURN_VARIABLE = "SHARDMARK_GPU_TURN"
# "1" if a case ran out of memory: it waits until most of the memory is free, and keeps the turn
# until it ends.
ALONE_VARIABLE = "SHARDMARK_GATE_ALONE"
