"""What makes the output complete: config, generation config, tokenizer, processor, chat
template.

It imports nothing: the process that `bounded` starts for a chat template imports this room with its
module.
"""
