"""Training: the objective, the schedules, the loop, checkpoints and history."""
