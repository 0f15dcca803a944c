"""Which rule file each manifest is for, of those that there is one for."""

from __future__ import annotations

#: What is there beside a rule file for the same checkpoints, as another class.
AS_WELL = {"llava-interleave": ("llava-interleave-onevision",)}
RULES_OF: dict[str, str] = {
    "llava-lightning-7b-v1-1": "llava-v1",
    "llava-lightning-7b-v1-1.released": "llava-v1",
    "llava-v1-0719-336px-vicuna-7b-v1.3.released": "llava-v1",
    "llava-v1-0719-336px-vicuna-13b-v1.3.released": "llava-v1",
    "llava-v1.5-7b": "llava-v1.5",
    "llava-v1.5-7b.released": "llava-v1.5",
    "llava-v1.5-7b.tf4.37": "llava-v1.5",
    "llava-v1.5-7b.self-trained-deepspeed": "llava-v1.5",
    "bakllava-v1": "bakllava",
    "bakllava-v1.released": "bakllava",
    "llava-med-v1.5-mistral-7b.released": "llava-med-v1.5",
    "llava-interleave-qwen-0.5b.released": "llava-interleave",
    "llava-v1.6-vicuna-7b.released": "llava-next",
    "llava-v1.6-mistral-7b.released": "llava-next",
    "llava-next-llama3-8b.released": "llava-next",
    "llava-next-qwen1.5-72b.released": "llava-next",
    "llava-next-video-7b.released": "llava-next-video",
    "llava-onevision-qwen2-0.5b": "llava-onevision",
    "llava-onevision-qwen2-0.5b.released": "llava-onevision",
    "llava-onevision-qwen2-7b.released": "llava-onevision",
    "vip-llava-7b": "vip-llava",
    "video-llava-7b": "video-llava",
}
