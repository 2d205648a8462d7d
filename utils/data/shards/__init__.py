"""Data sets in shards: tar files of some hundred megabytes, with an index of what is where."""
