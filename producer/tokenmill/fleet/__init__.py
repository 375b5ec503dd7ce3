"""The fleet at a glance: queue, workers, batches, failures and bulk runs, for whoever shows them. Changes nothing."""
