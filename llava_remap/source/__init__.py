"""Finds the local checkpoint of each source: given, by default, or from the hub."""
