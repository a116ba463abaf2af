"""Which convolution becomes which factorization of which rank, within a budget."""
