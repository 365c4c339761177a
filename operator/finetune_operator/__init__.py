"""The operator: watches FineTuneJobs and turns each into pods and a truthful status."""
