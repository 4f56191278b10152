"""Drop-ins: fpfast's solvers behind the interfaces of other packages. Each module is imported by its own name."""
