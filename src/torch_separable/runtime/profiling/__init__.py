"""Where a compiled network's time goes, what the machine allows, and which tiles are fastest."""
