"""Weft's operators: one file per operator, each with its meaning as an equation and every shape.

The package knows tensors only: neither requests nor tenants nor files. `reference.py` holds a naive
float64 twin of every operator, the oracle of the tests.
"""
