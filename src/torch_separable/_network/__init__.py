"""What may be done with any nn.Module: check it, copy it, run it, refresh its computed weights."""
