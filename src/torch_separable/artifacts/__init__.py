"""Files that the package writes: run directories, saved networks, model cards, hub folders."""
