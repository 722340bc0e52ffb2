"""Servers that run elsewhere: asked and routed to, never spawned."""
