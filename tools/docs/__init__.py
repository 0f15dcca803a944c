"""What finds, runs and makes the pages of the documentation.

| module | what it does |
| --- | --- |
| `pages` | finds the pages, their links and their blocks of code |
| `play` | runs a page: its commands, its files, its Python |
| `reference` | writes the generated pages; `make reference` |
| `report_picture` | takes the picture of an HTML report; by hand, with a Chromium |
| `rooms_picture` | draws the rooms of the package |
"""
