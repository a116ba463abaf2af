"""Console and notebook output: progress bars, styled text and HTML tables."""
