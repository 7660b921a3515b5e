"""KV memory: formats, segments, the batched cache and the pool."""
