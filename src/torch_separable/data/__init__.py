"""Images with or without labels: in memory, read from files, randomly changed for training."""
