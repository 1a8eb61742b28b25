"""Stores of adapters on other machines. Knows neither the engine nor the gateway."""
