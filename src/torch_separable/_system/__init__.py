"""The operating system and the machine: files, locks, hardware, clocks, optional packages."""
