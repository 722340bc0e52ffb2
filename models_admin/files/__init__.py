"""Model files: found in folders, read, known by their content."""
