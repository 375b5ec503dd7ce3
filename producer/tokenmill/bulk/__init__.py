"""Datasets in, datasets out: resumable runs over a queue. Each module's first line says what it does not know."""
