"""The explorer: an HTML page that shows a convolution's figure, arithmetic and cost as a reader changes it."""
