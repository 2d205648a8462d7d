"""Writers of the official on-disk layouts, one file a family of data sets."""
