"""What makes the output complete: config, generation config, tokenizer, processor, chat
template.

This package imports nothing, because the process that `bounded` starts for a chat template imports
it too.
"""
