"""The verbs: each reads files and writes one, a model, a vector or a document."""
