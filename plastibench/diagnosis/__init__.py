"""Examine the plasticity of one network, layer by layer."""
