"""What should run, and where: the parts of the scheduler's pass."""
