"""Everything that a CPU cannot show: `python -m benchmarks.gpu`, see __main__.py."""
