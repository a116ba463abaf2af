"""The kernel library: its bindings, and memory in huge pages."""
