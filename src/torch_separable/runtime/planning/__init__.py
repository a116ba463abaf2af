"""From nodes to operations: tiling, order, memory, packed weights."""
