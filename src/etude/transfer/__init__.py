"""Knowledge carried from one task to the next: continual, few-shot and multi-task learning, weights made by networks.

`streams` holds what every paper of continual learning measures by, `importance` what weights mean to what was learned.
"""
