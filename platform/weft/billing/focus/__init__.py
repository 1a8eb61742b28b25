"""FOCUS, the FinOps Open Cost and Usage Specification: versions 1.4 and 1.2."""
