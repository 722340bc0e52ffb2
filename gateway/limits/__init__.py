"""Who may use how much: what administrators set, and what one has used of it."""
