"""The verbs: paths in, a file out, a frozen result back."""
