"""What outlives a prompt: snapshots, their fingerprints, caches, files, K/V in host memory."""
