"""Environment variables that tell a parity case's ranks how GPUs are shared."""

# "1" if all ranks share one GPU. That is only a functional check, never a timing.
SHARED_DEVICE = "SHARDMARK_SHARED_DEVICE"
