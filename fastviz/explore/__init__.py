"""What lies beyond one comparison: why it is not faster, sweeps, and the history of all runs."""
