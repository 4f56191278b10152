"""Triton kernels, one file an op. Installed as ``fpfast.kernels``; imported only when the triton backend is asked for."""
