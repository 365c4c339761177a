"""Pure planning: (job, runtime, observed, settings, now) to a Plan. No clock, no client, no randomness."""
