"""`python -m llava_remap`."""

from llava_remap.cli import main

main()
