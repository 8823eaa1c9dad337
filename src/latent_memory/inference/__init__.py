"""Recalled memory inside a local model: as text, as keys and values, as soft tokens, and in its weights.

Needs the extra `llm` (PyTorch, transformers). Nothing here knows LatentMemory: what goes in is a Context, or
conversations. Each way ends in a `Prefilled`, a model that has read its prompt, from which the answer goes on:

- `prompt`: the context's text, read anew each time; what all others are measured against.
- `kv_cache`: the context's keys and values, computed once, stored, and joined.
- `soft_tokens`: each passage's stored embedding, projected into a few input embeddings.
- `lora`: an adapter that was trained on the memory.
"""
