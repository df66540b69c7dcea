"""Recording trajectories and their rewards, and reading the published layouts."""
