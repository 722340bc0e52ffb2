"""The prompt library: texts to begin a message with."""
