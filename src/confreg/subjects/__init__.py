"""Subjects: what is ablated or watched, as axes of edits, with their random controls."""
