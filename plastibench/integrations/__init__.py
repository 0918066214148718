"""Callbacks that apply interventions in the training loops of other libraries."""
