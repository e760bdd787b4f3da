"""Claims of papers on transfer: continual, few-shot and multi-task learning, weights made by networks."""
