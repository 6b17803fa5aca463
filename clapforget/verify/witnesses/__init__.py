"""Witnesses: one file a way to look for what should be gone. Each runs alike on the model before,
the model after and the twin, and treats forgotten and unseen classes alike.
"""
