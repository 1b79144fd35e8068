"""Volumes, networks, teachers, students and measures. Built on torch, MONAI and nibabel."""
