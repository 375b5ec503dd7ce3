"""OpenAI's batches on bulk runs: one batch is one RQ job under `tokenmill bulk worker`. Needs the extra `bulk`."""
