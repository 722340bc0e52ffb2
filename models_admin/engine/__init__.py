"""llama-server itself: found, launched, watched, understood when it crashes."""
