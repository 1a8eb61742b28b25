"""What is told about requests, in logs and traces, and what is never told: secrets and prompts."""
