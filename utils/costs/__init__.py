"""Estimates of the FLOPs and the memory of a configuration."""
