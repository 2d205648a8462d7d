"""Datasets: readers of official layouts, sampling, collation."""
