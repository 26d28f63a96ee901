"""What a command leaves beside its artefact: metrics, provenance, dry runs, folders."""
