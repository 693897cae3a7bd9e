"""What turns observations into predictions: tensors in, tensors out, no files."""
