"""One short file for each data set."""
