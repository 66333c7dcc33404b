"""What a model sees: windows over mapped segments, the row-wise transform, encoders, and the labels beside them."""
