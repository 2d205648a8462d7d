"""Writers of the official on-disk layouts, one file for each family of data sets."""
