"""What outlives a run: KV blocks, their index, and sessions."""
