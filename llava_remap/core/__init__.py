"""The ground floor: problems and their codes, dtypes, names, files, the cache, libraries and
limits of the system.
"""
