"""llava-remap: research LLaVA checkpoints into ones that transformers, vLLM, SGLang and llama.cpp load."""

__version__ = "0.1.0"
