"""The audit: models, measurement, controls, verdicts, summary and report."""
