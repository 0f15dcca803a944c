"""What helps to write rule files: a draft, lint, tests and snapshots, explanations, small
twins.
"""
