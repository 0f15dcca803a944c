"""The order of a whole job: apply, load in memory, reverse, revert, diff; with its output, its
memory and disk.
"""
