"""What is on disk: labels, cohorts, settings, runs and bundles. Standard library only."""
