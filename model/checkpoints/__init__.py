"""Reading, writing, merging and quantising folders of weights of every layout."""
