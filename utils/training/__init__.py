"""What a training run needs besides model and data: checkpoints, meters, logs, caches."""
