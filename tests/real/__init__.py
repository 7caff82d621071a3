"""Tests of experiments/real."""
