"""What the research code computed, as tests: the facts in `tests/data/original` against converted
folders in every transformers.

| module | what |
| --- | --- |
| `facts` | the recorded facts |
| `pixels` | pixels as the research code makes them, and as older versions of transformers do |
| `convert` | checkpoints put together and converted by the command line |
| `answer` | what a version of transformers makes of a folder |
| `ask` | run by one version: makes the answers |
| `padded` | run by one version: what folders make of pictures of several shapes |
| `answers` | all versions asked |
| `judge` | an answer compared with a fact |
| `faults` | known faults of versions of transformers, each with its proof |
| `verdict` | what a comparison comes to, known faults taken into account |
| `table` | the column of the table in docs/versions.md |
"""
