"""From tokens to gradients: packing, attention layout, log-probabilities, losses."""
