"""A spiking network as a network of layers: populations and the maps between them."""

from snnjax.layers.lowering import lower

__all__ = ["lower"]
