"""Machines: what they have, what sits where, who may join."""
