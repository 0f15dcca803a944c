"""Tools for authors of rule files: drafts, lint, tests, snapshots, explanations and small twins."""
