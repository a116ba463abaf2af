"""What conversion learns from unlabelled images: moments of each convolution's input, recorded activations."""
