"""What leaves the trainer: metrics, progress, recovery state, published checkpoints."""
