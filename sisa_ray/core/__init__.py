"""Pure rules of a SISA run: no input or output, no clock, no Ray, no PyTorch."""
