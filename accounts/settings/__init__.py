"""The settings pages of a person: profile, API keys, sessions, security."""
