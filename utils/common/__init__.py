"""What every part of utils/ uses: settings, processes, logs, environment."""
