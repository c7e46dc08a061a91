"""Whether a matrix can run here, said before it is paid for."""
