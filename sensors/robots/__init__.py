"""Drivers of robots, one file a kind."""
