"""What a replica takes, and where there is room for it."""
