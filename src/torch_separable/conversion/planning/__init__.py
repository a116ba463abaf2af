"""Planning: which convolution is replaced by which factorisation of which rank, within a budget."""
