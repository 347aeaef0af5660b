"""Training: one Lightning fit that walks through the stages of a training plan."""
