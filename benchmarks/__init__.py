"""What the portal costs, measured against named baselines in the same run."""
