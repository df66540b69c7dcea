"""Search strategies, one file each; they are found by name in :mod:`ttsnap.search.registry`."""
