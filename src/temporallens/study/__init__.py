"""A study: one YAML file is the whole truth of a run, walked stage by stage, each stage cached by exactly what shaped it."""
