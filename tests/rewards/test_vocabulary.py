"""A second language model's log-probabilities, or one reward per token, as rewards: against a naive
decoder that runs the model over each candidate's whole text."""
