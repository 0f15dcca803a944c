"""What helps to write rule files: a draft, lint, tests and snapshots, explanations. Each module
is the order of one such job.
"""
