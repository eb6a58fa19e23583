"""What Wardian does, shown: the job of `make demo`."""
