"""Kills training runs at random and at every write, resumes them, and compares with the uninterrupted run."""
