"""`scdd-apps quantize`: int8 weights and activations, calibrated on a distilled file.

Static post-training quantisation by ONNX Runtime (QDQ: QuantizeLinear and DequantizeLinear around
float operators, which it then runs as integer ones); the distilled images take the place of real
ones, and are compared with random real images and with noise.
"""
