"""Indexes of large annotation files, built once and shared by all processes."""
