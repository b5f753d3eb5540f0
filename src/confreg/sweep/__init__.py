"""The sweep: steps cut into units, run in a place, written to a store, resumed.

It knows axes, variables and places, and nothing of what a recipe is about.
"""
