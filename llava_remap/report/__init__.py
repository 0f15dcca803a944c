"""Plan, result and rules to a terminal or to JSON. Import from the modules: each brings in only what it prints."""
