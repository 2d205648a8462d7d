"""Settings of the scripts: training and inference."""
