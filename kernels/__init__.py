"""Triton kernels, one file an op; installed as ``fpfast.kernels`` and imported only when the backend is used."""
