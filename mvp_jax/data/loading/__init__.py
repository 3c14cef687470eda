"""How examples are read: images decoded when they are looked at, streams of batches, prefetching."""
