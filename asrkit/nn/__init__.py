"""Frontends, masks, blocks, encoder, quantiser."""
