"""The kernel library through ctypes, and memory in huge pages."""
