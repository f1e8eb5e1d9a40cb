"""Training: the objective, the schedules, the loop, what is kept (checkpoints) and what is seen (history)."""
