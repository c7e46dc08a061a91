"""Environment variables that tell a parity case's ranks how GPUs are shared."""

# "1" where all ranks share one GPU, which is a functional check and never a timing.
SHARED_DEVICE = "SHARDMARK_SHARED_DEVICE"
# A file on this machine. The case that holds its lock is the next to fill GPUs.
TURN_VARIABLE = "SHARDMARK_GPU_TURN"
