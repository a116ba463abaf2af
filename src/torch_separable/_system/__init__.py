"""Operating system and hardware: files, locks, processor, timers and optional packages."""
