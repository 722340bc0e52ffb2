"""Models from a hub: searched, fetched, checked."""
