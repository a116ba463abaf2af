"""What is left on disk: run directories, saved networks, model cards, the hub's folders."""
