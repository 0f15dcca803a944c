"""What the user named → a local checkpoint: defaults, the hub, files."""
